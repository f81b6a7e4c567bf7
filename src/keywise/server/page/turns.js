// Questions and answers: the answer's words with their sources, the best sentences, ablation.

import { find, make, tell } from "./elements.js";
import { request } from "./requests.js";
import { activate, scrollToRank, showDocuments } from "./viewer.js";

const SHOWN_SENTENCES = 5;
const LEAST_SHARE = 0.005;
const LEAST_TIMES = 1.05;
const MOST_TIMES = 1e6;
const GAP_PIXELS = 8;

// Returns an article for a question whose answer is still to come.
export function addQuestion(question) {
  const answer = make("p", { class: "answer" });
  const progress = make("progress", { max: "1", "aria-label": "Reading" });
  progress.hidden = true;
  const article = make("article", { class: "turn" }, make("h3", {}, question), answer, progress);
  find("turns").append(article);
  return { article, answer, progress };
}

export function showError(article, message) {
  article.append(make("p", { class: "error", role: "alert" }, message));
}

// Fills an article with an answer, and shows the documents beside it.
export async function showAnswer(article, conversation, turn, { isLast }) {
  const view = `/api/conversations/${conversation.id}/turns/${turn.number}/view`;
  const title = conversation.titles.join(", ") || "Library";
  const open = () => showDocuments(view, title);
  const jump = async (rank) => {
    await open();
    activate([rank]);
    scrollToRank(rank, { focus: true });
  };
  const cited = new Set(turn.parts.flatMap((part) => part.ranks));
  article.querySelector(".answer").replaceWith(makeAnswer(turn, open, jump));
  article.querySelector("progress")?.remove();
  if (!turn.supported) {
    const percent = Math.round(100 * turn.no_answer_share);
    const note = `No sentence of the documents supports an answer (probability ${percent}%). The closest words are:`;
    article.querySelector(".answer").before(make("p", { class: "unsupported-note" }, note));
  }
  if (turn.read_windows < turn.windows) {
    article.append(make("p", { class: "note" }, `Read ${turn.read_windows} of ${turn.windows} parts of the documents.`));
  }
  if (turn.supported) article.append(makeSources(turn, cited, jump), makeTools(conversation, turn, open));
  if (isLast) {
    await open();
    if (turn.supported && turn.sentences.length) scrollToRank(turn.sentences[0].rank);
  }
}

function makeAnswer(turn, open, jump) {
  const parts = turn.parts.map(({ text, ranks }) => {
    if (!ranks.length) return text;
    const marks = ranks.map((rank) => make("sup", { "aria-hidden": "true" }, String(rank)));
    const mark = async () => {
      await open();
      activate(ranks);
    };
    const lead = text.length - text.trimStart().length;
    const button = make(
      "button",
      {
        type: "button",
        class: "word",
        "aria-label": `${text.trim()}, from sentence ${ranks.join(" and ")}`,
        onmouseenter: mark,
        onfocus: mark,
        onmouseleave: () => activate([]),
        onblur: () => activate([]),
        onclick: () => jump(ranks[0]),
      },
      text.trimStart(),
      ...marks,
    );
    const group = document.createDocumentFragment();
    group.append(text.slice(0, lead), button);
    return group;
  });
  const ellipsis = turn.complete ? "" : " …";
  return make("p", { class: turn.supported ? "answer" : "answer unsupported" }, ...parts, ellipsis);
}

function makeSources(turn, cited, jump) {
  const shown = turn.sentences.filter(({ rank, share }) => share >= LEAST_SHARE || cited.has(rank));
  const items = shown.slice(0, SHOWN_SENTENCES).map((sentence) => {
    const percent = `${(100 * sentence.share).toFixed(1)}%`;
    const meter = make("meter", { value: String(sentence.share), "aria-hidden": "true" });
    const button = make(
      "button",
      {
        type: "button",
        class: cited.has(sentence.rank) ? "source cited" : "source",
        "data-rank": sentence.rank,
        onclick: () => jump(sentence.rank),
      },
      make("span", { class: "share" }, make("span", {}, String(sentence.rank)), " ", make("span", {}, percent), meter),
      make("span", { class: "sentence-text" }, sentence.text),
      make("span", { class: "note" }, sentence.where),
    );
    return make("li", {}, button);
  });
  return make("ol", { class: "sources", "aria-label": "Sentences that may answer" }, ...items);
}

function makeTools(conversation, turn, open) {
  const results = make("div", { class: "ablation" });
  const button = make("button", { type: "button" }, "Measure what the answer depends on");
  button.addEventListener("click", async () => {
    button.disabled = true;
    tell("Reading the sentences again without each of them");
    try {
      const path = `/api/conversations/${conversation.id}/turns/${turn.number}/ablation`;
      showAblations(results, (await request("POST", path)).ablations);
      // The area of the question covers the end of the conversation.
      results.style.scrollMarginBottom = `${find("ask").offsetHeight + GAP_PIXELS}px`;
      results.scrollIntoView({ block: "nearest" });
      tell("Measured");
    } catch (error) {
      button.disabled = false;
      tell(error.message);
    }
  });
  if (turn.ablations.length) {
    showAblations(results, turn.ablations);
    button.disabled = true;
  }
  const view = make("button", { type: "button", onclick: open }, "Show in the documents");
  return make("div", {}, make("div", { class: "tools" }, view, button), results);
}

// Tells how many times less likely the answer is without a sentence.
export function describeAblation({ rank, drop_nats: drop, control }) {
  const sentence = `sentence ${rank}${control ? " (control: from the middle of the ranking)" : ""}`;
  if (drop <= 0) return `The answer does not depend on ${sentence}.`;
  const times = Math.exp(drop);
  if (times < LEAST_TIMES) return `The answer hardly depends on ${sentence}.`;
  if (times > MOST_TIMES) return `Without ${sentence} the answer is more than a million times less likely.`;
  const rounded = times.toLocaleString("en", { maximumSignificantDigits: 2 });
  return `Without ${sentence} the answer is ${rounded} times less likely.`;
}

function showAblations(results, ablations) {
  const items = ablations.map((ablation) => make("li", {}, describeAblation(ablation)));
  results.replaceChildren(make("ul", { "aria-label": "Ablation" }, ...items));
}
