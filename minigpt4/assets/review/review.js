"use strict";
const press = (id) => document.getElementById(id)?.click();
const text = document.getElementById("text");
const before = new URLSearchParams(location.search).get("before");
const back = document.getElementById("back");
if (back && before) back.href = "/sample/" + encodeURIComponent(before);
else if (back) back.remove();

document.addEventListener("keydown", (event) => {
  if (event.repeat) return; // a key held down must not decide on the next sample as well, unseen
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) return press("edit");
  if (event.key === "Escape") return text?.blur();
  if (document.activeElement === text || event.ctrlKey || event.metaKey || event.altKey) return;
  const keys = { a: "accept", r: "reject", b: "back" };
  if (event.key.toLowerCase() === "e" && text) { event.preventDefault(); text.focus(); }
  else press(keys[event.key.toLowerCase()]);
});
