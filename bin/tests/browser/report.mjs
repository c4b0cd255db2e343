// Opens reports in Chromium, at a desk's and at a phone's width, and uses them: nothing may be
// fetched, nothing be complained of, and a hostile name stays text.
//
//     npm ci && node report.mjs PROGRAM RECORDING [--shots FOLDER]
//
// CHROMIUM names the browser; default: /usr/bin/chromium.
import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import assert from "node:assert/strict";
import { chromium } from "playwright-core";

// The program is run in another folder.
const [program, recording] = process.argv.slice(2).map((path) => resolve(path));
const shots = process.argv.includes("--shots") ? process.argv[process.argv.indexOf("--shots") + 1] : null;
const folder = mkdtempSync(join(tmpdir(), "tlbscope-report-"));
if (shots) mkdirSync(shots, { recursive: true });

// A name that would run a script, were it ever taken for markup: of a trace and of a policy.
const HOSTILE = "<img src=x onerror=window.hacked=1>\u2028\"'<!--<script>";
const EVIL = `${HOSTILE.replaceAll("/", "")}.txt`;

const run = (...args) => {
  try {
    execFileSync(program, args, { cwd: folder, stdio: ["ignore", "ignore", "inherit"] });
  } catch (error) {
    assert.equal(error.status, 1, `tlbscope ${args.join(" ")}: exit code ${error.status}`);
  }
};

// A guest that clears PGE now and then and uses what it outlawed: many more effects than are shown.
const long = (rounds) => {
  const lines = ["v0 map 0x400000 0x5000 rwg"];
  for (let n = 0; n < rounds; n += 1) {
    lines.push("v0 read 0x400000", `v0 cr3 ${0x1000 * (2 + n % 2)}`, "v0 cr4 -PGE", "v0 cr4 +PGE");
  }
  return `${lines.join("\n")}\n`;
};

const sizes = { desktop: { width: 1280, height: 800 }, phone: { width: 390, height: 844 } };

// The report in a browser of this size: what it fetched and complained of must be nothing.
const visit = async (browser, name, size, dark, use) => {
  const context = await browser.newContext({ viewport: sizes[size], colorScheme: dark ? "dark" : "light",
    deviceScaleFactor: size === "phone" ? 2 : 1, hasTouch: size === "phone" });
  // A busy machine is no failure.
  context.setDefaultTimeout(180_000);
  const page = await context.newPage();
  const complaints = [];
  const fetched = [];
  page.on("console", (message) => { if (["error", "warning"].includes(message.type())) complaints.push(message.text()); });
  page.on("pageerror", (error) => complaints.push(String(error)));
  const url = pathToFileURL(join(folder, `${name}.html`)).href;
  page.on("request", (request) => { if (request.url() !== url) fetched.push(request.url()); });
  const began = performance.now();
  await page.goto(url);
  await page.waitForSelector("html[data-ready]", { state: "attached" });
  // Until it is drawn.
  await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
  const ms = Math.round(performance.now() - began);
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  console.log(`${name}, ${size}, ${dark ? "dark" : "light"}: opened in ${ms} ms`);
  assert.ok(wide <= sizes[size].width, `${name} is ${wide} wide at ${size}`);
  if (use) await use(page);
  if (shots) await page.screenshot({ path: join(shots, `${name}-${size}-${dark ? "dark" : "light"}.png`), fullPage: true });
  assert.deepEqual(complaints, [], `${name}, ${size}`);
  assert.deepEqual(fetched, [], `${name}, ${size}`);
  assert.equal(await page.evaluate(() => window.hacked), undefined);
  await context.close();
};

const text = (page, selector) => page.locator(selector).innerText();

// What is in view, of the line below the timeline.
const events = async (page) => {
  const [, low, high] = (await text(page, "#tl-shown")).replaceAll(",", "").match(/events (\d+) to (\d+)/);
  return [Number(low), Number(high)];
};
const drawn = (page) => page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
const press = async (page, key) => { await page.keyboard.press(key); await drawn(page); };

const useTimeline = async (page) => {
  const box = page.locator("#tl-view");
  await box.focus();
  const whole = await events(page);
  for (let n = 0; n < 4; n += 1) await press(page, "+");
  const near = await events(page);
  assert.ok(near[1] - near[0] < (whole[1] - whole[0]) / 3, `${near} after + in ${whole}`);
  await press(page, "Home");
  const start = await events(page);
  for (let n = 0; n < 4; n += 1) await press(page, "ArrowRight");
  assert.ok((await events(page))[0] > start[0], "the arrow moves");
  await press(page, "End");
  assert.equal((await events(page))[1], whole[1], "End shows the end");
  await press(page, "0");
  assert.deepEqual(await events(page), whole);
  // Zooming and moving with the mouse.
  const { x, y, width } = await box.boundingBox();
  await page.mouse.move(x + width / 2, y + 20);
  await page.keyboard.down("Control");
  await page.mouse.wheel(0, -300);
  await page.keyboard.up("Control");
  await drawn(page);
  const wheeled = await events(page);
  assert.ok(wheeled[1] - wheeled[0] < whole[1] - whole[0], "Ctrl and the wheel zoom");
  await press(page, "0");
  // Choosing effects.
  await press(page, "n");
  await press(page, "n");
  assert.match(await text(page, "#tl-detail"), /event/);
  // Filters.
  const number = async () => Number((await text(page, "#tl-shown")).replaceAll(",", "").match(/, ?(\d+) effects|(\d+) effects/)[0].match(/\d+/)[0]);
  const all = await number();
  await page.locator("#tl-kinds input").first().uncheck();
  await drawn(page);
  const fewer = await number();
  assert.ok(fewer < all, `${fewer} of ${all} without register writes`);
  await page.locator("#tl-kinds input").first().check();
  await page.fill("#tl-words", "no effect says this");
  await drawn(page);
  assert.equal(await number(), 0);
  await page.fill("#tl-words", "");
  await page.fill("#tl-vcpus", "99");
  await drawn(page);
  assert.ok(await number() < all, "no such vCPU");
  await page.fill("#tl-vcpus", "");
  await page.selectOption("#tl-axis", "time");
  await drawn(page);
  assert.match(await text(page, "#tl-shown"), / ns| µs| ms| s /);
  await page.selectOption("#tl-axis", "event");
  await drawn(page);
  // The same as a table.
  await page.locator("#tl-table > summary").click();
  await drawn(page);
  assert.ok(await page.locator("#tl-table tbody tr").count() > 0);
  await page.locator("#tl-table > summary").click();
};

const useFindings = async (page) => {
  const box = page.locator("#tl-view");
  await box.focus();
  await press(page, "f");
  assert.match(await text(page, "#tl-detail"), /Finding 1:/);
  await press(page, "Enter");
  const open = page.locator(".finding[open]").first();
  assert.match(await open.innerText(), /operation[\s\S]*answered by/);
  await open.getByText("Show in the timeline").click();
  assert.equal(await page.evaluate(() => document.activeElement.id), "tl-view");
  await page.fill("#f-words", "nothing has this");
  assert.equal(await page.locator(".finding").count(), 0);
  await page.fill("#f-words", "");
};

const main = async () => {
  copyFileSync(recording, join(folder, "recording"));
  writeFileSync(join(folder, EVIL), long(50));
  writeFileSync(join(folder, "long.txt"), long(Number(process.env.ROUNDS ?? 20000)));
  writeFileSync(join(folder, "evil.toml"), `name = ${JSON.stringify(`</script>${HOSTILE}`)}\nextends = "never"\n`);
  run("compare", "recording", "--policy", "kvm-5.17,kvm-patch-v2,kvm-6.1-lts,never,hw-min", "--report", "compare.html");
  run("simulate", "recording", "--policy", "never", "--report", "simulate.html");
  run("audit", "recording", "--report", "audit.html");
  run("compare", EVIL, "--policy", "evil.toml,kvm-5.17", "--report", "hostile.html");
  run("simulate", "long.txt", "--policy", "never", "--report", "long.html");
  assert.ok(!readFileSync(join(folder, "hostile.html"), "utf8").includes("<img"));

  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu", "--disable-quic",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"] });
  try {
    for (const size of Object.keys(sizes)) {
      for (const dark of [false, true]) {
        await visit(browser, "compare", size, dark, useTimeline);
        await visit(browser, "simulate", size, dark, async (page) => { await useTimeline(page); await useFindings(page); });
        await visit(browser, "audit", size, dark, useTimeline);
      }
      await visit(browser, "hostile", size, false, async (page) => {
        assert.ok((await text(page, "#cards")).includes("<img src=x"), "the name of the policy is text");
        assert.ok((await page.title()).includes("<img src=x"), "the name of the trace is text");
        assert.equal(await page.locator("main img, main script, #cards script").count(), 0);
        await useFindings(page);
      });
      await visit(browser, "long", size, false, async (page) => {
        assert.match(await text(page, "#tl-part"), /Only a part is shown: 100,000 of/);
        await useTimeline(page);
      });
    }
    if (shots) {
      const page = await browser.newPage();
      await page.goto(pathToFileURL(join(folder, "simulate.html")).href);
      await page.pdf({ path: join(shots, "simulate.pdf"), format: "A4", printBackground: true });
    }
  } finally {
    await browser.close();
  }
  console.log("all passed");
};

try {
  await main();
} finally {
  rmSync(folder, { recursive: true, force: true });
}
