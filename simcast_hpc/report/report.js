// Each viewer shows one lead time, selected by a slider or animated. Without this script all lead times are in strips.
for (const viewer of document.querySelectorAll(".viewer")) {
  const slider = viewer.querySelector("input");
  const output = viewer.querySelector("output");
  const button = viewer.querySelector("button");
  const strips = [...viewer.querySelectorAll(".strip")].map((strip) => [...strip.children]);
  const times = slider.dataset.times.split(" ");
  let timer = 0;
  const show = () => {
    const lead = Number(slider.value);
    for (const cells of strips) cells.forEach((cell, k) => { cell.hidden = k !== lead; });
    output.textContent = `${times[lead]} min`;
    slider.setAttribute("aria-valuetext", `${times[lead]} minutes`);
  };
  const play = (on) => {
    clearInterval(timer);
    button.textContent = on ? "Stop" : "Play";
    button.setAttribute("aria-pressed", String(on));
    if (!on) return;
    timer = setInterval(() => { slider.value = (Number(slider.value) + 1) % times.length; show(); }, 600);
  };
  slider.addEventListener("input", () => { play(false); show(); });
  button.addEventListener("click", () => play(button.textContent === "Play"));
  viewer.classList.add("live");
  viewer.querySelector(".controls").hidden = false;
  for (const strip of viewer.querySelectorAll(".strip")) strip.removeAttribute("tabindex");
  show();
}

// A hint above every table that is wider than the screen.
const hints = () => {
  for (const scroll of document.querySelectorAll(".scroll")) {
    const isWide = scroll.scrollWidth > scroll.clientWidth + 1;
    const before = scroll.previousElementSibling;
    if (before && before.classList.contains("hint")) before.hidden = !isWide;
    else if (isWide) {
      const hint = document.createElement("p");
      hint.className = "hint";
      hint.textContent = "Scroll sideways for more columns →";
      scroll.before(hint);
    }
  }
};
addEventListener("resize", hints);
for (const section of document.querySelectorAll("details")) section.addEventListener("toggle", hints);
hints();
