// The last answers: Back, Forward and a reload show them again. They are kept in this browser, and nowhere else.

const NAME = "answers";
const KEPT = 100; // answers: the oldest are forgotten first
const HOURS = 12; // after which all are

const recent = new Map(); // of this visit, also where the browser keeps nothing (private windows)
let count = 0;

// A key that sorts by time.
export const newId = () => `${Date.now()}-${String(count += 1).padStart(5, "0")}-${Math.random()}`;

const database = new Promise((resolve, reject) => {
  const request = indexedDB.open(`${NAME}:${location.pathname}`, 1);
  request.onupgradeneeded = () => request.result.createObjectStore(NAME);
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

async function within(mode, work) {
  const transaction = (await database).transaction(NAME, mode);
  const request = work(transaction.objectStore(NAME));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

// Keep a record: { name, upload, answer } of a photo.
export async function remember(id, record) {
  recent.set(id, record);
  try {
    await within("readwrite", (store) => store.put(record, id));
    const ids = await within("readonly", (store) => store.getAllKeys());
    const oldest = `${Date.now() - HOURS * 3_600_000}`;
    const old = ids.filter((key, index) => key < oldest || index < ids.length - KEPT);
    for (const key of old) await within("readwrite", (store) => store.delete(key));
  } catch {
    // no room, or none allowed: this visit still has it
  }
}

export async function recall(id) {
  return recent.get(id) ?? within("readonly", (store) => store.get(id)).catch(() => undefined);
}

export async function forget() {
  recent.clear();
  await within("readwrite", (store) => store.clear()).catch(() => {});
}
