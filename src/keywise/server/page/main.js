// The page: a conversation about documents, which are shown beside it.

import { find, make, showPanel, tell } from "./elements.js";
import { addFiles, loadState, showLists, state } from "./lists.js";
import { request, streamEvents } from "./requests.js";
import { addQuestion, showAnswer, showError } from "./turns.js";
import { clearViewer, scrollToSpan, showDocuments } from "./viewer.js";

let asking = null;

function refreshLists() {
  showLists({ openDocument, openConversation });
}

function describeConversation() {
  const names = state.current
    ? state.current.titles
    : state.documents.filter((item) => state.selected.has(item.id)).map((item) => item.name);
  const about = names.length ? `About ${names.join(", ")}` : state.library ? `About the library ${state.library}` : "Add a document to ask it.";
  find("about").textContent = about;
}

async function openDocument(item) {
  state.opened = item.id;
  refreshLists();
  await showDocuments(`/api/documents/${item.id}/view`, item.name);
  showPanel("viewer");
}

async function openConversation(id) {
  const conversation = await request("GET", `/api/conversations/${id}`);
  state.current = conversation;
  window.history.replaceState(null, "", `/#${id}`);
  find("turns").replaceChildren();
  for (const [number, turn] of conversation.turns.entries()) {
    const { article } = addQuestion(turn.question);
    const isLast = number === conversation.turns.length - 1;
    await showAnswer(article, conversation, { ...turn, number }, { isLast });
  }
  describeConversation();
  refreshLists();
  showPanel("conversation");
}

async function begin() {
  state.current = null;
  find("turns").replaceChildren();
  clearViewer();
  window.history.replaceState(null, "", "/");
  describeConversation();
  refreshLists();
  showPanel("conversation");
  find("question").focus();
  const selected = state.documents.filter((item) => state.selected.has(item.id));
  if (selected.length) await showDocuments(`/api/documents/${selected[0].id}/view`, selected[0].name);
}

async function ask(question) {
  if (state.current === null) {
    state.current = await request("POST", "/api/conversations", { documents: [...state.selected] });
    window.history.replaceState(null, "", `/#${state.current.id}`);
  }
  const conversation = state.current;
  const { article, answer, progress } = addQuestion(question);
  article.scrollIntoView({ block: "end" });
  tell("Thinking");
  asking = new AbortController();
  find("send").disabled = true;
  find("stop").hidden = false;
  try {
    await streamEvents(
      `/api/conversations/${conversation.id}/questions`,
      { question },
      {
        progress: ({ done, total }) => {
          progress.hidden = false;
          progress.max = total;
          progress.value = done;
          tell(`Read ${done} of ${total} tokens`);
        },
        delta: ({ text }) => answer.append(text),
        answer: (turn) => {
          article.ready = showAnswer(article, conversation, turn, { isLast: true });
          tell(turn.supported ? `Answer: ${turn.text}` : "No sentence supports an answer");
        },
      },
      asking.signal,
    );
    await article.ready;
  } catch (error) {
    progress.remove();
    showError(article, error.name === "AbortError" ? "Stopped." : error.message);
    tell("");
  } finally {
    asking = null;
    find("send").disabled = false;
    find("stop").hidden = true;
  }
  await loadState();
  refreshLists();
}

async function takeFiles(files) {
  showPanel("lists");
  let isFirst = true;
  await addFiles([...files], async (added) => {
    await loadState();
    if (isFirst) state.selected = new Set();
    isFirst = false;
    state.selected.add(added.id);
    await begin();
  });
}

function listen() {
  find("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const question = find("question").value.trim();
    if (!question || asking !== null) return;
    find("question").value = "";
    ask(question).catch((error) => tell(error.message));
  });
  find("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      find("ask").requestSubmit();
    }
  });
  find("stop").addEventListener("click", () => asking?.abort());
  find("begin").addEventListener("click", () => begin().catch((error) => tell(error.message)));
  find("files").addEventListener("change", (event) => {
    takeFiles([...event.target.files]);
    event.target.value = "";
  });
  document.querySelector(".panels").addEventListener("click", (event) => {
    const panel = event.target.closest("button")?.dataset.panel;
    if (panel) showPanel(panel);
  });
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.matches("textarea");
    if (event.key === "Escape" && asking !== null) asking.abort();
    if (event.key === "/" && !isTyping) {
      event.preventDefault();
      showPanel("conversation");
      find("question").focus();
    }
  });
  window.addEventListener("unhandledrejection", (event) => tell(event.reason.message));
  listenToDrops();
}

function listenToDrops() {
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    find("drop").hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) find("drop").hidden = true;
  });
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    find("drop").hidden = true;
    takeFiles([...event.dataTransfer.files]);
  });
}

// Opens what the address names: a cited sentence, a conversation, or the documents of the server.
async function openAddress() {
  const query = new URLSearchParams(window.location.search);
  const cited = state.documents.find((item) => item.id === query.get("document"));
  if (cited) {
    state.selected = new Set([cited.id]);
    await openDocument(cited);
    scrollToSpan(Number(query.get("start")), Number(query.get("end")));
    describeConversation();
    return;
  }
  const id = window.location.hash.slice(1);
  if (state.conversations.some((item) => item.id === id)) await openConversation(id);
  else await begin();
}

async function start() {
  listen();
  await loadState();
  refreshLists();
  await openAddress();
}

start().catch((error) => {
  find("turns").append(make("p", { class: "error", role: "alert" }, error.message));
});
