// Elements made from texts; nothing is ever parsed as HTML here.

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

export function find(id) {
  return document.getElementById(id);
}

export function tell(text) {
  find("status").textContent = text;
}

// On a narrow screen one part of the page is shown at a time.
export function showPanel(name) {
  document.body.dataset.panel = name;
  for (const button of document.querySelectorAll(".panels button")) {
    button.setAttribute("aria-pressed", String(button.dataset.panel === name));
  }
}
