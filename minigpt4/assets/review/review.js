"use strict";
const find = (id) => document.getElementById(id);
const text = find("text");
const large = find("large");

find("filter").elements.show.addEventListener("change", (event) => event.target.form.requestSubmit());
find("zoom")?.addEventListener("click", () => large.showModal());
large?.addEventListener("click", () => large.close());
const strip = document.querySelector(".strip");
const here = strip.querySelector("[aria-current]"); // to its middle; scrollIntoView would move the page as well
if (here) strip.scrollLeft = here.offsetLeft - strip.offsetLeft - (strip.clientWidth - here.offsetWidth) / 2;

document.addEventListener("keydown", (event) => {
  if (event.repeat) return; // a key held down must not decide on the next sample as well, unseen
  const key = event.key.toLowerCase();
  if (large?.open) return key === "z" ? large.close() : undefined;
  if (key === "enter" && (event.ctrlKey || event.metaKey)) return find("edit")?.click();
  if (key === "escape") return text?.blur();
  if (event.target.closest?.("textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  const keys = { a: "accept", r: "reject", s: "next", n: "next", b: "back", z: "zoom" };
  if (key === "e" && text) { event.preventDefault(); text.focus(); }
  else find(keys[key])?.click();
});
