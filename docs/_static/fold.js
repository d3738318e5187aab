// A link that leads into something folded opens it, in browsers that do not do so by themselves, too.
function unfold() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)))
  for (let o = target; o; o = o.parentElement) if (o.tagName == 'DETAILS') o.open = true
  if (target) target.scrollIntoView()
}
addEventListener('DOMContentLoaded', unfold)
addEventListener('hashchange', unfold)
