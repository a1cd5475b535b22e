"use strict";

function shown(value) {
  if (Number.isInteger(value)) return value.toLocaleString("en");
  if (Math.abs(value) >= 1e4) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(4)));
}

function nearest(numbers, wanted) {
  let low = 0, high = numbers.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (numbers[middle] < wanted) low = middle; else high = middle;
  }
  return wanted - numbers[low] <= numbers[high] - wanted ? low : high;
}

for (const figure of document.querySelectorAll("figure.chart")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const svg = figure.querySelector(":scope > svg"), cursor = svg.querySelector(".cursor");
  const groups = svg.querySelectorAll(".line"), output = figure.querySelector("output");
  const buttons = figure.querySelectorAll(".legend button");
  const {left, right} = data.box, [from, to] = data.x;
  const last = Array.from(buttons, button => button.querySelector("b").textContent);

  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    const at = (event.clientX - box.left) / box.width * data.width;
    const wanted = from + (at - left) / (right - left) * (to - from);
    let step = null;
    data.lines.forEach((line, number) => {
      if (groups[number].classList.contains("off")) return;
      const own = line.x[nearest(line.x, wanted)];
      if (step === null || Math.abs(own - wanted) < Math.abs(step - wanted)) step = own;
    });
    if (step === null) return;
    data.lines.forEach((line, number) => {
      const inside = step >= line.x[0] && step <= line.x[line.x.length - 1];
      const value = inside ? shown(line.y[nearest(line.x, step)]) : "–";
      buttons[number].querySelector("b").textContent = value;
    });
    const place = left + (step - from) / (to - from) * (right - left);
    cursor.setAttribute("x1", place);
    cursor.setAttribute("x2", place);
    cursor.style.visibility = "visible";
    output.textContent = `${data.name} ${shown(step)}`;
  });
  svg.addEventListener("pointerleave", () => {
    cursor.style.visibility = "hidden";
    output.textContent = "";
    buttons.forEach((button, number) => { button.querySelector("b").textContent = last[number]; });
  });
  buttons.forEach((button, number) => button.addEventListener("click", () => {
    const off = groups[number].classList.toggle("off");
    button.setAttribute("aria-pressed", String(!off));
  }));
}

for (const part of document.querySelectorAll(".samples")) {
  const range = part.querySelector("input");
  if (!range) continue;
  const views = part.querySelectorAll(".view"), output = part.querySelector("output");
  range.addEventListener("input", () => {
    views.forEach((view, number) => { view.hidden = number !== Number(range.value); });
    output.textContent = `step ${views[range.value].dataset.step}`;
  });
}
