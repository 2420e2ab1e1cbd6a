// A phone breaks lines after hyphens, which would tear options apart: `--` here, `out` there.
for (const code of document.querySelectorAll("pre > code")) {
  const walker = document.createTreeWalker(code, NodeFilter.SHOW_TEXT);
  const texts = [];
  while (walker.nextNode()) texts.push(walker.currentNode);
  for (const text of texts.filter((each) => /\S-/.test(each.data) || /-\S/.test(each.data))) {
    const parts = text.data.split(/(\s+)/).map((part) => {
      if (!part.includes("-")) return part;
      const word = document.createElement("span");
      word.className = "whole";
      word.textContent = part;
      return word;
    });
    text.replaceWith(...parts);
  }
}
