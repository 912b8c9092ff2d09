// Owns the ground's helper processes: each says that it is ready by one JSON line, and ends when its standard input
// closes.
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

/** Starts a script of this folder. `ready` is its first line, if it has one; `ask` sends it a command line. */
export async function start(script, args = [], env = {}, { greets = true, program = process.execPath } = {}) {
  const path = fileURLToPath(new URL(script, import.meta.url));
  const child = spawn(program, [path, ...args], {
    stdio: ["pipe", "pipe", "inherit"],
    env: { ...process.env, ...env },
  });
  const ended = new Promise((resolve) => child.on("exit", (code) => resolve(code)));
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const line = async () => {
    const { value, done } = await lines.next();
    if (done) throw new Error(`${script} ended with status ${await ended}`);
    return JSON.parse(value);
  };
  return {
    ready: greets ? await line() : undefined,
    ended,
    ask: (command) => {
      child.stdin.write(`${JSON.stringify(command)}\n`);
      return line();
    },
    stop: () => {
      child.stdin.end();
      return ended;
    },
  };
}
