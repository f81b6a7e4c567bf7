// Requests to the server: JSON, files, and events as they arise.

export async function request(method, path, body) {
  const response = await fetch(path, {
    method,
    headers: body === undefined ? {} : { "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  await check(response);
  return response.json();
}

export async function requestText(path) {
  const response = await fetch(path);
  await check(response);
  return response.text();
}

export async function upload(file) {
  const form = new FormData();
  form.append("file", file, file.name);
  const response = await fetch("/api/documents", { method: "POST", body: form });
  await check(response);
  return response.json();
}

// Calls a handler for every event of a stream, by its name, until its end.
export async function streamEvents(path, body, handlers, signal) {
  const response = await fetch(path, {
    method: "POST",
    headers: body === undefined ? {} : { "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
    signal,
  });
  await check(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    pending += value;
    const events = pending.split("\n\n");
    pending = events.pop();
    for (const event of events) handleEvent(event, handlers);
  }
}

function handleEvent(text, handlers) {
  let name = "message";
  let data = "";
  for (const line of text.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    if (line.startsWith("data: ")) data += line.slice(6);
  }
  if (!data) return;
  const value = JSON.parse(data);
  if (name === "error") throw new Error(value.error.message);
  handlers[name]?.(value);
}

async function check(response) {
  if (response.ok) return;
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // The body is not an error of the API: the status has to do.
  }
  throw new Error(message);
}
