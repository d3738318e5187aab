// How the search ranks: as Sphinx does, with the ways in before the chapters, and tests and source last.
var FIRST = ["tour", "run", "use", "reproduce", "extend", "questions", "paper_map", "chapters", "weights", "glossary"];
var Scorer = {
  score: result => {
    const [docname, title, anchor, descr, score, filename] = result;
    if (FIRST.includes(docname)) return score + 30;
    return /^(test_|tests$|changelog|contributing|licence)/.test(docname) ? score - 20 : score;
  },
  objNameMatch: 11, objPartialMatch: 6, objPrio: { 0: 15, 1: 5, 2: -5 }, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
};
