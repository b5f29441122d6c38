"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  // as ImageData holds colours when it is read four bytes at a time, low byte first
  const packed = ([red, green, blue]) => (255 << 24 | blue << 16 | green << 8 | red) >>> 0;
  const ERROR = packed([213, 94, 0]); // vermillion
  const GREY = packed([128, 128, 128]);
  const colours = data.classes.map((each) => packed(each.colour));
  const shown = data.classes.map(() => true);

  // runs of equal pixels, three bytes each: class, length (low byte first)
  function unpack(text, length) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const labels = new Uint8Array(length);
    let end = 0;
    for (let at = 0; at < bytes.length; at += 3) {
      const start = end;
      end += bytes[at + 1] + 256 * bytes[at + 2];
      labels.fill(bytes[at], start, end);
    }
    return labels;
  }

  function draw(canvas, example, kind) {
    const picture = new ImageData(example.width, example.height);
    const pixels = new Uint32Array(picture.data.buffer);
    const { truth, prediction, width } = example;
    for (let pixel = 0; pixel < pixels.length; pixel++) {
      const label = truth[pixel];
      const drawn = kind === "prediction" ? prediction[pixel] : label;
      if (drawn === data.ignore) {
        const x = pixel % width, y = (pixel - x) / width;
        if ((x >> 2) + (y >> 2) & 1) pixels[pixel] = GREY;
      } else if (shown[drawn] && (kind !== "errors" || label !== prediction[pixel])) {
        pixels[pixel] = kind === "errors" ? ERROR : colours[drawn];
      }
    }
    canvas.getContext("2d").putImageData(picture, 0, 0);
  }

  const name = (label) => label === data.ignore ? "no label" : data.classes[label].name;
  const canvases = [];

  document.querySelectorAll(".example").forEach((article) => {
    const example = data.examples[article.dataset.number];
    const size = example.width * example.height;
    for (const part of ["truth", "prediction"]) example[part] = unpack(example[part], size);
    const image = article.querySelector("img");
    const readout = article.querySelector(".readout");
    article.querySelectorAll("figure").forEach((figure) => {
      const kind = figure.dataset.kind, stack = figure.querySelector(".stack");
      if (kind !== "image") {
        const copy = image.cloneNode();
        copy.alt = kind;
        const canvas = document.createElement("canvas");
        Object.assign(canvas, { width: example.width, height: example.height });
        stack.append(copy, canvas);
        canvases.push([canvas, example, kind]);
      }
      stack.addEventListener("pointermove", (event) => {
        const box = stack.getBoundingClientRect();
        const x = Math.floor((event.clientX - box.left) / box.width * example.width);
        const y = Math.floor((event.clientY - box.top) / box.height * example.height);
        if (x < 0 || y < 0 || x >= example.width || y >= example.height) return;
        const pixel = y * example.width + x;
        readout.textContent = `truth: ${name(example.truth[pixel])}, prediction: ${name(example.prediction[pixel])}`;
      });
    });
  });

  const drawAll = () => canvases.forEach((each) => draw(...each));
  const boxes = [...document.querySelectorAll("#toggles input")];
  boxes.forEach((box) => box.addEventListener("change", () => {
    shown[box.value] = box.checked;
    drawAll();
  }));
  for (const [id, state] of [["all", true], ["none", false]]) {
    document.getElementById(id).addEventListener("click", () => {
      boxes.forEach((box) => { box.checked = shown[box.value] = state; });
      drawAll();
    });
  }

  const slider = document.getElementById("opacity");
  const setOpacity = () => {
    document.documentElement.style.setProperty("--opacity", slider.value / 100);
    document.getElementById("opacity-value").textContent = `${slider.value} %`;
  };
  slider.addEventListener("input", setOpacity);
  // a browser that comes back to the page keeps the controls as they were left
  boxes.forEach((box) => { shown[box.value] = box.checked; });
  setOpacity();
  drawAll();
})();
