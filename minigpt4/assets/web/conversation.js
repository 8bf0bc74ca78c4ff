// Draws one model's conversation; Gradio gives `element`, `props`, `trigger` and `watch`.
// Texts of visitors and models only ever become text nodes, so that nothing in them is markup.
const make = (tag, name, parent, text = "") => {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = text;
  parent.append(made);
  return made;
};
const write = (node, text) => {
  if (node.textContent !== text) node.textContent = text;
  node.hidden = !text;
};

make("div", "name", element, props.model);
const log = make("div", "log", element);
log.tabIndex = 0;
log.setAttribute("role", "log");
const start = make("div", "start", log);
make("p", "hint", start, "Add an image and ask about it, or try one of these:");
const grid = make("div", "examples", start);
props.examples.forEach(({ image, question }, index) => {
  const example = make("button", "example", grid);
  example.type = "button";
  make("img", "", example).src = image;
  example.lastChild.alt = "";
  make("span", "", example, question);
  example.addEventListener("click", () => trigger("select", { index, value: question }));
});
const turns = make("div", "turns", log);

// The question that is being written, in a component of Gradio's.
const question = {
  get area() {
    return document.querySelector("#box textarea");
  },
  change(edit) {
    const { set } = Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value");
    set.call(this.area, edit(this.area.value));
    this.area.dispatchEvent(new Event("input", { bubbles: true }));
    this.area.focus();
  },
};
const withTask = (task, text) => `[${task}] ${text.replace(/^\s*\[[a-z]+\]\s*/, "")}`;
if (props.tasks.length) {
  const tasks = make("div", "tasks", element);
  for (const task of props.tasks) {
    const button = make("button", "task", tasks, `[${task}]`);
    button.type = "button";
    button.addEventListener("click", () => question.change((text) => withTask(task, text)));
  }
  make("span", "", tasks, "Drag over an image to ask what is there.");
  const pending = make("div", "pending", element);
  element.insertBefore(pending, tasks);
  const showPending = () => {
    const urls = [...document.querySelectorAll("#box .thumbnail-item img")].map((image) => image.src);
    if (pending.dataset.urls === urls.join("\n")) return;
    pending.dataset.urls = urls.join("\n");
    pending.replaceChildren();
    for (const url of urls) makeCanvas(pending, url, "image of the next question; draw a box");
  };
  // The text box may not be there yet, or be made again.
  const changes = { childList: true, subtree: true, attributeFilter: ["src"] };
  new MutationObserver(showPending).observe(document.body, changes);
}

// An image on which boxes are shown; where the model knows tasks, a box can be drawn, which asks what is in it.
function makeCanvas(parent, url, alt) {
  const canvas = make("div", "canvas", parent);
  const image = make("img", "", canvas);
  image.src = url;
  image.alt = alt;
  image.draggable = false;
  if (props.tasks.includes("identify")) {
    canvas.classList.add("drawable");
    let start = null;
    let drawn = null;
    const place = ({ clientX, clientY }) => {
      const { left, top, width, height } = image.getBoundingClientRect();
      const share = (value, size) => Math.min(1, Math.max(0, value / size));
      return [share(clientX - left, width), share(clientY - top, height)];
    };
    const box = ([x, y]) => ({
      left: Math.min(start[0], x), top: Math.min(start[1], y), right: Math.max(start[0], x), bottom: Math.max(start[1], y),
      label: "",
    });
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return; // the right button opens the browser's menu
      start = place(event);
      canvas.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!start) return;
      drawn?.remove();
      drawn = makeBox(canvas, box(place(event)));
    });
    canvas.addEventListener("pointerup", (event) => {
      if (!start) return;
      const { left, top, right, bottom } = box(place(event));
      start = null;
      const sides = [left, top, right, bottom].map((side) => Math.round(100 * side));
      if (sides[0] < sides[2] && sides[1] < sides[3]) {
        const text = `{${sides.map((side) => `<${side}>`).join("")}}`;
        const known = /\{(<\d+>){4}\}/;
        question.change((typed) =>
          withTask("identify", known.test(typed) ? typed.replace(known, text) : `what is this ${text}`),
        );
      } else {
        window.open(url, "_blank");
      }
    });
    canvas.addEventListener("pointercancel", () => {
      start = null;
      drawn?.remove();
    });
  }
  return canvas;
}

function makeBox(canvas, { left, top, right, bottom, label }) {
  const box = make("div", "box", canvas);
  const percent = (share) => `${100 * share}%`;
  Object.assign(box.style, {
    left: percent(left), top: percent(top), width: percent(right - left), height: percent(bottom - top),
  });
  if (label) make("span", "", box, label);
  return box;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Pages of other machines without encryption have no clipboard.
    const area = make("textarea", "", document.body);
    area.value = text;
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

function newTurn() {
  const turn = make("div", "turn", turns);
  for (const role of ["user", "bot"]) {
    const message = make("div", `message ${role}`, turn);
    if (role === "user") make("div", "images", message);
    const text = make("p", "text", message);
    if (role === "bot") {
      make("div", "boxed", message);
      make("p", "remark", message);
    }
    const foot = make("div", "foot", message);
    make("span", "figures", foot);
    const button = make("button", "copy", foot, "Copy");
    button.type = "button";
    button.setAttribute("aria-label", role === "user" ? "Copy the question" : "Copy the answer");
    button.addEventListener("click", async () => {
      await copy(text.textContent);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
  }
  return turn;
}

function showBoxes(shown, boxes, boxed) {
  const state = JSON.stringify([boxes, boxed.map(({ url }) => url)]);
  if (shown.dataset.state === state) return;
  shown.dataset.state = state;
  shown.replaceChildren();
  for (const { url } of boxed) {
    const canvas = makeCanvas(shown, url, "the image with the boxes of the answer");
    for (const box of boxes) makeBox(canvas, box);
  }
}

function update(turn, { question: asked, images, answer, figures, remark, boxes, boxed }, growing) {
  const [user, bot] = turn.children;
  const urls = images.map((image) => image.url).join("\n");
  const shown = user.querySelector(".images");
  if (shown.dataset.urls !== urls) {
    shown.dataset.urls = urls;
    shown.replaceChildren();
    for (const { url } of images) {
      if (props.tasks.length) {
        makeCanvas(shown, url, "image of the question; draw a box, or click to open it at its full size");
        continue;
      }
      const link = make("a", "", shown);
      link.href = url;
      link.target = "_blank";
      make("img", "", link).src = url;
      link.lastChild.alt = "image of the question; opens at its full size";
    }
  }
  write(user.querySelector(".text"), asked);
  showBoxes(bot.querySelector(".boxed"), boxes, boxed);
  write(bot.querySelector(".text"), answer);
  write(bot.querySelector(".remark"), growing ? "" : remark);
  bot.querySelector(".figures").textContent = growing ? "" : figures;
  bot.classList.toggle("growing", growing);
  bot.hidden = !answer && !growing;
}

function render() {
  const { turns: told, kept, busy, finished } = props.value; // the first `kept` turns stay as they are shown
  const length = kept + told.length;
  const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 80 || turns.children.length < length;
  start.hidden = length > 0;
  while (turns.children.length > length) turns.lastChild.remove();
  told.forEach((turn, index) => {
    update(turns.children[kept + index] ?? newTurn(), turn, busy && index === told.length - 1);
  });
  log.setAttribute("aria-busy", busy);
  log.dataset.finished = finished;
  if (follows) log.scrollTop = log.scrollHeight;
}

watch("value", render);
render();
