/* Runs where the texts are shown: a value replaces all that is there, as the explorer's element needs it, and a
   candidate that is clicked is told to the page. */
const here = element.querySelector(".play-texts");
watch("value", () => { here.innerHTML = props.value ?? ""; });
here.addEventListener("explorer-branch", (event) => trigger("branch", event.detail));
