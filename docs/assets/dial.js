// Turns each row of pictures, one for each budget, into one picture and a dial.
for (const [number, dial] of document.querySelectorAll(".dial").entries()) {
  const figures = [...dial.querySelectorAll("figure[data-budget]")]
    .sort((a, b) => a.dataset.budget - b.dataset.budget);
  const label = document.createElement("label");
  const input = document.createElement("input");
  // A label names the first control inside it, which would be the output.
  label.htmlFor = input.id = `dial-${number}`;
  Object.assign(input, { type: "range", min: 0, max: figures.length - 1, value: Math.floor((figures.length - 1) / 2) });
  label.append("model.budget = ", document.createElement("output"), input);
  const turn = () => {
    figures.forEach((figure, place) => { figure.hidden = place !== +input.value; });
    const budget = figures[input.value].dataset.budget;
    label.querySelector("output").value = budget;
    input.setAttribute("aria-valuetext", `budget ${budget}`);
  };
  input.addEventListener("input", turn);
  dial.append(label);
  dial.classList.add("turns");
  turn();
}
