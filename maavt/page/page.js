"use strict";
// Filters of the samples, whole clips at full width, and the map's player. Without it the report shows all samples.
const filters = document.querySelector(".filters");
const cards = [...document.querySelectorAll(".sample")];

function show() {
  const wanted = Object.fromEntries(new FormData(filters));
  for (const card of cards) {
    const { label, right, differ } = card.dataset;
    card.hidden = (wanted.label !== "" && label !== wanted.label) || (wanted.right !== "" && right !== wanted.right) ||
      (wanted.differ !== undefined && differ !== "1");
  }
  for (const group of document.querySelectorAll(".group")) {
    group.hidden = !group.querySelector(".sample:not([hidden])");
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
  for (const image of card.querySelectorAll(".looks")) {
    image.addEventListener("click", () => { if (whole) whole.open = !whole.open; });
  }
}
const playing = document.querySelector(".playing");
for (const point of document.querySelectorAll(".map button")) {
  point.addEventListener("click", () => {
    const { verdict, source, link, frame, audio } = point.dataset;
    const player = playing.querySelector("audio"), file = playing.querySelector("a");
    document.querySelector(".map .chosen")?.classList.remove("chosen");
    point.classList.add("chosen");
    playing.hidden = false;
    playing.querySelector("img").src = frame;
    playing.querySelector("b").textContent = verdict;
    file.textContent = source;
    if (link) file.href = link; else file.removeAttribute("href");
    player.hidden = !audio;
    player.pause();
    if (audio) {
      player.src = audio;
      player.play().catch(() => {}); // a browser may refuse to play by itself: its controls are there
    }
  });
}
