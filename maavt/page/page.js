"use strict";
// Filters of the pairs, and whole clips opened to the full width. Without it all pairs are shown, which reads as well.
const filters = document.querySelector(".filters");
const cards = [...document.querySelectorAll(".pair")];

function show() {
  const wanted = Object.fromEntries(new FormData(filters));
  for (const card of cards) {
    const { label, right, differ } = card.dataset;
    card.hidden = (wanted.label !== "" && label !== wanted.label) || (wanted.right !== "" && right !== wanted.right) ||
      (wanted.differ !== undefined && differ !== "1");
  }
  for (const group of document.querySelectorAll(".group")) {
    group.hidden = !group.querySelector(".pair:not([hidden])");
  }
  filters.querySelector("output").textContent = `${cards.filter((card) => !card.hidden).length} of ${cards.length}`;
}

if (filters) {
  filters.hidden = false;
  filters.addEventListener("input", show);
  filters.addEventListener("submit", (event) => event.preventDefault());
  show();
}
for (const card of cards) {
  const whole = card.querySelector("details");
  whole?.addEventListener("toggle", () => card.classList.toggle("open", whole.open));
  for (const picture of card.querySelectorAll(".looks, .hears")) {
    picture.addEventListener("click", () => { if (whole) whole.open = !whole.open; });
  }
}
