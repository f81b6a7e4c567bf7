// The lists of documents and conversations, and files that are added.

import { find, make, tell } from "./elements.js";
import { request, streamEvents, upload } from "./requests.js";

export const state = { documents: [], conversations: [], selected: new Set(), current: null, opened: null };

export async function loadState() {
  const loaded = await request("GET", "/api/state");
  const isFirst = !state.isLoaded;
  Object.assign(state, loaded, { isLoaded: true });
  if (isFirst) state.selected = new Set(loaded.default_documents);
  find("model").textContent = loaded.model;
}

export function showLists({ openDocument, openConversation }) {
  // Documents that came inside a request of a client are found by their addresses alone.
  const listed = state.documents.filter((item) => item.origin !== "sent");
  const documents = listed.map((item) => makeDocumentRow(item, openDocument));
  find("documents").replaceChildren(...documents);
  const conversations = state.conversations.map((item) => makeConversationRow(item, openConversation));
  find("conversations").replaceChildren(...conversations);
  find("begin").disabled = state.selected.size === 0 && state.library === null;

  function refresh() {
    showLists({ openDocument, openConversation });
  }

  function makeDocumentRow(item, open) {
    const box = make("input", { type: "checkbox", "aria-label": `Ask ${item.name}` });
    box.checked = state.selected.has(item.id);
    box.addEventListener("change", () => {
      if (box.checked) state.selected.add(item.id);
      else state.selected.delete(item.id);
      find("begin").disabled = state.selected.size === 0 && state.library === null;
    });
    const notes = [item.pages ? `${item.pages} ${item.pages === 1 ? "page" : "pages"}` : null, ...item.warnings].filter(Boolean).join("; ");
    const button = make(
      "button",
      { type: "button", class: "open", "aria-current": String(state.opened === item.id), onclick: () => open(item) },
      item.name,
      ...(notes ? [make("span", { class: "note" }, notes)] : []),
    );
    return make("li", { class: "row" }, box, button, makeRemove(item.name, `/api/documents/${item.id}`, () => state.selected.delete(item.id)));
  }

  function makeConversationRow(item, open) {
    const button = make(
      "button",
      { type: "button", class: "open", "aria-current": String(state.current?.id === item.id), onclick: () => open(item.id) },
      item.title || "New conversation",
      make("span", { class: "note" }, item.titles.join(", ") || "Library"),
    );
    return make("li", { class: "row" }, button, makeRemove(item.title, `/api/conversations/${item.id}`, () => {}));
  }

  function makeRemove(name, path, forget) {
    const remove = async () => {
      if (!window.confirm(`Remove ${name}?`)) return;
      try {
        await request("DELETE", path);
        forget();
        await loadState();
        refresh();
        tell(`Removed ${name}`);
      } catch (error) {
        tell(error.message);
      }
    };
    return make("button", { type: "button", class: "remove", "aria-label": `Remove ${name}`, onclick: remove }, "×");
  }
}

// Adds files one after the other; calls done with each document that the model has read.
export async function addFiles(files, done) {
  for (const file of files) {
    const progress = make("progress", { "aria-label": `Reading ${file.name}` });
    const note = make("span", { class: "note" }, "converting");
    const item = make("li", {}, file.name, progress, note);
    find("uploads").append(item);
    try {
      const added = await upload(file);
      note.textContent = "reading";
      await streamEvents(`/api/documents/${added.id}/prefill`, undefined, {
        progress: ({ done: tokens, total }) => {
          progress.max = total;
          progress.value = tokens;
          note.textContent = `${tokens} of ${total} tokens`;
        },
      });
      item.remove();
      tell(`Read ${added.name}`);
      await done(added);
    } catch (error) {
      progress.remove();
      note.className = "error";
      note.setAttribute("role", "alert");
      note.textContent = error.message;
    }
  }
}
