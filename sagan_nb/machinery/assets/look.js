(d => {
const root = [...document.querySelectorAll('#@ID')].find(o => !o.dataset.made), bytes = s => Uint8Array.from(atob(s), c => c.charCodeAt(0));
root.dataset.made = 1;      // the same may be shown twice
const floats = s => new Float32Array(bytes(s).buffer), make = t => document.createElement(t);
const [H, W] = d.shape, h = H/d.cell, w = W/d.cell, n = d.width, zoom = Math.ceil(320/d.res), side = d.res*zoom;
const shown = d.pictures.map(p => ({rgb: bytes(p.rgb), q: floats(p.q), k: floats(p.k), name: p.name}));
const [picture, heat] = [0, 1].map(() => Object.assign(make('canvas'), {width: side, height: side, tabIndex: 0}));
for (const c of [picture, heat]) c.setAttribute('role', 'img');
picture.setAttribute('aria-label', 'picture: click a pixel, or move with the arrow keys');
heat.setAttribute('aria-label', 'attention of the chosen pixel'); heat.tabIndex = -1;
const hint = make('p'); hint.textContent = 'Click a pixel of the picture, or move with the arrow keys.';
const both = make('div'), text = make('p'), choose = make('select'); both.className = 'both';
text.setAttribute('aria-live', 'polite'); choose.setAttribute('aria-label', 'picture');
shown.forEach((p, i) => choose.add(new Option(p.name, i))); both.append(picture, heat);
let at = d.at || [Math.floor(H/2), Math.floor(W/2)];
const row = p => { const j = (at[0]*W + at[1])*n, s = new Float64Array(h*w); let top = -Infinity, sum = 0;
  for (let i = 0; i < h*w; i++) {
    for (let c = 0; c < n; c++) s[i] += p.q[j + c]*p.k[i*n + c];
    top = Math.max(top, s[i]); }
  s.forEach((v, i) => sum += s[i] = Math.exp(v - top)); return s.map(v => v/sum); };
const paint = (ctx, p, grey) => { for (let y = 0; y < d.res; y++) for (let x = 0; x < d.res; x++) {
  const o = 3*(y*d.res + x), c = p.rgb.slice(o, o + 3), g = .2*(c[0] + c[1] + c[2]);
  ctx.fillStyle = `rgb(${grey ? [g, g, g] : [...c]})`; ctx.fillRect(x*zoom, y*zoom, zoom, zoom); } };
const draw = () => {
  const p = shown[choose.value || 0], beta = row(p), top = Math.max(...beta), best = beta.indexOf(top);
  const [a, b] = [picture, heat].map(c => c.getContext('2d')), sy = side/h, sx = side/w;
  paint(a, p, false); paint(b, p, true);
  beta.forEach((v, i) => { b.globalAlpha = .25 + .75*v/top; b.fillStyle = d.colors[Math.round(255*v/top)];
    b.fillRect(i % w*sx, Math.floor(i/w)*sy, sx, sy); }); b.globalAlpha = 1;
  for (const c of [a, b]) {
    c.beginPath(); c.arc((at[1] + .5)*side/W, (at[0] + .5)*side/H, 7, 0, 7); c.fillStyle = '#E69F00'; c.fill();
    c.lineWidth = 2; c.strokeStyle = '#fff'; c.stroke(); }
  const px = d.res/H, pc = px*d.cell, span = v => pc > 1 ? `${v*pc}-${v*pc + pc - 1}` : v;
  text.textContent = `pixel ${at.map(v => Math.floor((v + .5)*px))}: most at rows ${span(Math.floor(best/w))}, `
    + `columns ${span(best % w)} (${(100*top).toFixed(1)}% of its attention, ${(top*h*w).toFixed(1)} times an even share)`; };
const go = (y, x) => { at = [Math.max(0, Math.min(H - 1, y)), Math.max(0, Math.min(W - 1, x))]; draw(); };
picture.onclick = e => { const o = picture.getBoundingClientRect();
  go(Math.floor((e.clientY - o.top)/o.height*H), Math.floor((e.clientX - o.left)/o.width*W)); };
const keys = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};
picture.onkeydown = e => { const m = keys[e.key];
  if (m) { e.preventDefault(); e.stopPropagation(); go(at[0] + m[0], at[1] + m[1]); } };
choose.onchange = draw; root.querySelector('.static').hidden = true; root.append(choose, hint, both, text); draw();
})(@DATA)
