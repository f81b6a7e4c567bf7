// The documents beside the conversation, with the marks of an answer.

import { find, showPanel } from "./elements.js";
import { requestText } from "./requests.js";

const sheets = find("sheets");
const views = find("views");
let shown = "";

// Shows documents from an address; the server made them HTML and escaped their texts.
export async function showDocuments(address, title) {
  if (shown !== address) {
    const html = await requestText(address);
    const parsed = new DOMParser().parseFromString(html, "text/html");
    sheets.replaceChildren(...parsed.body.childNodes);
    shown = address;
  }
  find("viewer-title").textContent = title;
  const hasPages = sheets.querySelector(".page") !== null;
  views.hidden = !hasPages;
  selectView(hasPages ? "pages" : "text");
}

export function clearViewer() {
  sheets.replaceChildren();
  shown = "";
  views.hidden = true;
  find("viewer-title").textContent = "Documents";
}

export function selectView(name) {
  sheets.dataset.view = name;
  for (const button of views.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.view === name));
  }
}

// Marks sentences by their ranks; an empty list removes these marks.
export function activate(ranks) {
  for (const element of document.querySelectorAll(".active")) element.classList.remove("active");
  for (const rank of ranks) {
    for (const element of document.querySelectorAll(`[data-rank="${rank}"]`)) element.classList.add("active");
  }
}

export function scrollToRank(rank, { focus = false } = {}) {
  const box = sheets.dataset.view === "pages" ? sheets.querySelector(`#box-${rank}`) : null;
  const sentence = sheets.querySelector(`#rank-${rank}`);
  const isHidden = sentence !== null && sentence.closest(".document").querySelector(".page") !== null;
  if (box === null && isHidden && sheets.dataset.view === "pages") selectView("text");
  const target = box ?? sentence;
  if (target === null) return;
  if (focus) {
    showPanel("viewer");
    if (!target.hasAttribute("tabindex")) target.setAttribute("tabindex", "-1");
    target.focus({ preventScroll: true });
  }
  target.scrollIntoView({ block: "center" });
}

// Shows the sentence of an address that an API cited.
export function scrollToSpan(start, end) {
  selectView("text");
  for (const element of sheets.querySelectorAll(".sentence")) {
    if (Number(element.dataset.start) < end && Number(element.dataset.end) > start) {
      element.classList.add("active", "cited");
      element.scrollIntoView({ block: "center" });
    }
  }
}

views.addEventListener("click", (event) => {
  const view = event.target.closest("button")?.dataset.view;
  if (view) selectView(view);
});
sheets.addEventListener("mouseover", (event) => {
  const rank = event.target.closest("[data-rank]")?.dataset.rank;
  if (rank) activate([rank]);
});
sheets.addEventListener("mouseleave", () => activate([]));
// A box leads to its sentence in the text.
sheets.addEventListener("click", (event) => {
  const box = event.target.closest("a.box");
  if (box === null) return;
  event.preventDefault();
  activate([box.dataset.rank]);
});
