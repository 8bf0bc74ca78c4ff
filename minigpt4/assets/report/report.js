"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const grid = byId("cards"), checkpoint = byId("checkpoint"), order = byId("order");
  const search = byId("search"), all = byId("all"), none = byId("none"), enlarged = byId("enlarged");
  const pagers = [...document.querySelectorAll(".pages")];
  const perPage = Number(grid.dataset.perPage);
  const cards = [...grid.querySelectorAll(".card")].map((node) => ({
    node,
    scores: node.dataset.scores.split(",").map(Number),
    index: Number(node.dataset.index),
    text: node.querySelector(".body").textContent.toLowerCase(),
    answers: [...node.querySelectorAll(".preds li")],
  }));
  let page = 0;
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
      card.answers.forEach((answer, i) => {
        answer.classList.toggle("chosen", i === chosen);
        // The first checkpoint stays beside the chosen one: before and after.
        answer.hidden = !all.checked && i !== chosen && i !== 0;
      });
      card.node.querySelectorAll("[data-found]").forEach((boxes) => {
        boxes.toggleAttribute("hidden", !all.checked && Number(boxes.dataset.found) !== chosen);
      });
      grid.append(card.node);
    }
    turn(0);
  }

  function turn(to) {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fitting = cards.filter((card) => words.every((word) => card.text.includes(word)));
    const pages = Math.max(1, Math.ceil(fitting.length / perPage));
    page = Math.min(Math.max(to, 0), pages - 1);
    const shown = new Set(fitting.slice(page * perPage, (page + 1) * perPage));
    for (const card of cards) card.node.hidden = !shown.has(card);
    none.hidden = fitting.length > 0 || cards.length === 0;
    const first = fitting.length ? page * perPage + 1 : 0;
    for (const pager of pagers) {
      pager.querySelector("output").value = `${first} to ${page * perPage + shown.size} of ${fitting.length}`;
      const [back, next] = pager.querySelectorAll("button");
      back.disabled = page === 0;
      next.disabled = page === pages - 1;
    }
  }

  for (const pager of pagers) {
    const button = (text, step) => {
      const made = document.createElement("button");
      made.type = "button";
      made.textContent = text;
      made.addEventListener("click", () => {
        turn(page + step);
        if (pager !== pagers[0]) byId("images").scrollIntoView();
      });
      return made;
    };
    pager.append(button("← Back", -1), document.createElement("output"), button("Next →", 1));
  }

  for (const control of [checkpoint, order, all]) control.addEventListener("change", arrange);
  search.addEventListener("input", () => turn(0));
  for (const link of document.querySelectorAll("[data-checkpoint]")) {
    link.addEventListener("click", () => {
      checkpoint.value = link.dataset.checkpoint;
      order.value = "worst";
      arrange();
    });
  }
  document.addEventListener("click", (event) => {
    const zoom = event.target.closest(".zoom");
    if (zoom) {
      const image = zoom.querySelector("img"), shown = enlarged.querySelector("img");
      shown.src = image.src;
      shown.alt = image.alt;
      shown.parentElement.querySelector("svg")?.remove();
      const boxes = zoom.querySelector("svg");
      if (boxes) shown.after(boxes.cloneNode(true));
      enlarged.querySelector("p").textContent = image.alt;
      enlarged.showModal();
    } else if (enlarged.open && event.target.closest("dialog")) enlarged.close();
  });
  if (checkpoint.options.length < 2) {
    order.querySelectorAll("[value=gain], [value=loss]").forEach((option) => option.remove());
  }
  if (checkpoint.options.length < 3) all.parentElement.hidden = true;
  arrange();
})();
