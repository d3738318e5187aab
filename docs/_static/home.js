// The clickable generator of the home page: thumbnails in place of the list, and a dot that starts where there is something to see.
document.querySelectorAll(".look").forEach(look => {
  const list = look.querySelector("select"), canvases = look.querySelectorAll("canvas");
  if (!list || canvases.length < 2) return;
  const [picture, map] = canvases, starts = look.dataset.starts.split(" ").map(o => o.split(",").map(Number));
  const res = 32, both = picture.parentElement, row = document.createElement("div");
  const place = (i, point) => {
    list.value = i; list.dispatchEvent(new Event("change"));
    const box = picture.getBoundingClientRect(), [y, x] = point;
    picture.dispatchEvent(new MouseEvent("click", { clientX: box.left + (x + .5)/res*box.width, clientY: box.top + (y + .5)/res*box.height }));
  };
  const thumbs = [...list.options].map((option, i) => {
    const button = document.createElement("button"), small = document.createElement("canvas");
    small.width = small.height = res;
    const pen = small.getContext("2d"), side = picture.width, part = 4/res*side;
    pen.imageSmoothingEnabled = false;
    place(i, [res - 1, res - 1]); pen.drawImage(picture, 0, 0, res, res);                       // all of it, with the dot in a corner,
    place(i, [0, 0]); pen.drawImage(picture, side - part, side - part, part, part, res - 4, res - 4, 4, 4);      // and that corner without
    button.type = "button"; button.setAttribute("aria-label", option.text); button.append(small);
    button.onclick = () => { place(i, starts[i]); thumbs.forEach(o => o.setAttribute("aria-pressed", o === button)); };
    return button;
  });
  row.className = "thumbs"; row.append(...thumbs); both.append(row);
  list.hidden = true;
  thumbs[+look.dataset.picture].click();
});
