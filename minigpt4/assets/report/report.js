"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const grid = byId("cards"), checkpoint = byId("checkpoint"), order = byId("order");
  const search = byId("search"), only = byId("only"), count = byId("count"), none = byId("none");
  const cards = [...grid.querySelectorAll(".card")].map((node) => ({
    node,
    scores: node.dataset.scores.split(",").map(Number),
    index: Number(node.dataset.index),
    text: node.querySelector(".body").textContent.toLowerCase(),
    answers: [...node.querySelectorAll(".preds li")],
  }));
  // What a card counts for: larger comes first.
  const weight = {
    best: (card, i) => card.scores[i],
    worst: (card, i) => -card.scores[i],
    gain: (card, i) => card.scores[i] - card.scores[0],
    loss: (card, i) => card.scores[0] - card.scores[i],
    file: (card) => -card.index,
  };

  function arrange() {
    const chosen = Number(checkpoint.value), value = weight[order.value];
    cards.sort((a, b) => value(b, chosen) - value(a, chosen) || a.index - b.index);
    for (const card of cards) {
      card.answers.forEach((answer, i) => answer.classList.toggle("chosen", i === chosen));
      grid.append(card.node);
    }
    grid.classList.toggle("only", only.checked);
  }

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const card of cards) {
      const fits = words.every((word) => card.text.includes(word));
      card.node.hidden = !fits;
      shown += fits;
    }
    count.value = `${shown} of ${cards.length}`;
    none.hidden = shown > 0 || cards.length === 0;
  }

  for (const control of [checkpoint, order, only]) control.addEventListener("change", arrange);
  search.addEventListener("input", filter);
  if (checkpoint.options.length < 2) {
    order.querySelectorAll("[value=gain], [value=loss]").forEach((option) => option.remove());
    only.parentElement.hidden = true;
  }
  arrange();
  filter();
})();
