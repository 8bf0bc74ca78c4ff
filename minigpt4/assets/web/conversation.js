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
    if (role === "bot") make("p", "remark", message);
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

function update(turn, { question, images, answer, figures, remark }, growing) {
  const [user, bot] = turn.children;
  const urls = images.map((image) => image.url).join("\n");
  const shown = user.querySelector(".images");
  if (shown.dataset.urls !== urls) {
    shown.dataset.urls = urls;
    shown.replaceChildren();
    for (const { url } of images) {
      const link = make("a", "", shown);
      link.href = url;
      link.target = "_blank";
      make("img", "", link).src = url;
      link.lastChild.alt = "image of the question; opens at its full size";
    }
  }
  write(user.querySelector(".text"), question);
  write(bot.querySelector(".text"), answer);
  write(bot.querySelector(".remark"), growing ? "" : remark);
  bot.querySelector(".figures").textContent = growing ? "" : figures;
  bot.classList.toggle("growing", growing);
  bot.hidden = !answer && !growing;
}

function render() {
  const { turns: told, busy, finished } = props.value;
  const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 80 || turns.children.length < told.length;
  start.hidden = told.length > 0;
  while (turns.children.length > told.length) turns.lastChild.remove();
  told.forEach((turn, index) => {
    update(turns.children[index] ?? newTurn(), turn, busy && index === told.length - 1);
  });
  log.setAttribute("aria-busy", busy);
  log.dataset.finished = finished;
  if (follows) log.scrollTop = log.scrollHeight;
}

watch("value", render);
render();
