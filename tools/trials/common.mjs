// What the trials for Node.js share; see common.py.

export const given = JSON.parse(process.env.TRIALS);
export const messages = [
  { role: "system", content: given.system },
  { role: "user", content: given.questions[0] },
];

export async function trial(what, expected, run) {
  const got = await run().catch(String);
  const isRight = JSON.stringify(got) === JSON.stringify(expected);
  console.log(JSON.stringify([what, isRight, got]));
}

export function later(reply) {
  const turns = [
    { role: "assistant", content: reply },
    { role: "user", content: given.questions[1] },
  ];
  return [...messages, ...turns];
}
