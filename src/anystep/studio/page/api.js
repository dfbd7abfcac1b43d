// What is asked of the server.

/** The reason in an answer that is none. */
async function reason(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the server answers ${answer.status}`;
  }
}

/** Fetch; an error says why in words for the reader. */
export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server is not there: is anystep studio still running?");
  }
  if (!answer.ok) throw new Error(await reason(answer));
  return answer;
}

export const askJSON = async (path, options) => (await ask(path, options)).json();

/** Server-sent events of a POST, each as [name, data]. */
export async function* events(path, body, signal) {
  const answer = await ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += value;
      const blocks = text.split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const found = /^event: (.*)\ndata: (.*)$/.exec(block);
        if (found) yield [found[1], JSON.parse(found[2])];
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the connection to the server has ended");
  } finally {
    reader.cancel().catch(() => {});
  }
}
