// Writes the letters with builders for Node: `node make.mjs MODULES [BUILDER...]`, MODULES being where npm installed them.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

const here = dirname(fileURLToPath(import.meta.url))
const modules = createRequire(resolve(process.argv[2], 'x.js'))
const content = (file) => ('text' in file ? Buffer.from(file.text) : Buffer.from(file.base64, 'base64'))
const shown = ([name, address]) => (name ? `"${name.replace(/(["\\])/g, '\\$1')}" <${address}>` : address)
const has = (letter, ...keys) => keys.some((key) => key in letter)
const headers = (letter) => Object.entries(letter.headers ?? {})

async function nodemailer(letter) {
  const composer = modules('nodemailer/lib/mail-composer')
  const people = (pairs = []) => pairs.map(([name, address]) => ({ name, address }))
  if (has(letter, 'charset')) return null
  return new composer({
    from: people(letter.from)[0], to: people(letter.to), cc: people(letter.cc), replyTo: people(letter.reply_to),
    bcc: 'secret@example.net', subject: letter.subject, text: letter.text, html: letter.html, amp: letter.amp,
    headers: letter.headers,
    icalEvent: letter.calendar && { method: 'REQUEST', content: letter.calendar },
    attachments: [
      ...(letter.files ?? []).map((file) => ({
        filename: file.name || false, contentType: file.type, content: content(file), cid: file.cid,
      })),
      ...(letter.message ? [{ filename: 'complaint.eml', contentType: 'message/rfc822', content: letter.message }] : []),
    ],
  }).compile().build()
}

async function emailjs(letter) {
  if (has(letter, 'charset', 'amp', 'calendar', 'message') || !('text' in letter)) return null
  const { Message } = await import(modules.resolve('emailjs'))
  const people = (pairs = []) => pairs.map(shown).join(', ')
  const message = new Message({
    from: people(letter.from), to: people(letter.to), cc: people(letter.cc), 'reply-to': people(letter.reply_to),
    subject: letter.subject, text: letter.text, ...letter.headers,
    attachment: [
      ...(letter.html
        ? [{
            data: letter.html, alternative: true,
            related: letter.files?.filter((file) => file.cid).map((file) => ({
              data: content(file), type: file.type, name: file.name, inline: true,
              headers: { 'Content-ID': `<${file.cid}>` },
            })),
          }]
        : []),
      ...(letter.files ?? []).filter((file) => !file.cid).map((file) => ({
        data: content(file), type: file.type, name: file.name || undefined,
      })),
    ],
  })
  return new Promise((done, failed) => message.read((error, text) => (error ? failed(error) : done(Buffer.from(text)))))
}

async function mimetext(letter) {
  if (has(letter, 'charset', 'amp', 'calendar', 'message') || (letter.files ?? []).some((file) => !file.name)) return null
  const { createMimeMessage } = await import(resolve(process.argv[2], 'node_modules/mimetext/dist/mimetext.node.es.js'))
  const message = createMimeMessage()
  const people = (pairs) => pairs.map(([name, addr]) => ({ name, addr }))
  message.setSender(people(letter.from)[0])
  message.setTo(people(letter.to))
  if (letter.cc) message.setCc(people(letter.cc))
  message.setSubject(letter.subject)
  for (const [name, value] of headers(letter)) message.setHeader(name, value)
  for (const [key, contentType] of [['text', 'text/plain'], ['html', 'text/html']]) {
    if (letter[key]) {
      message.addMessage({ contentType, encoding: 'base64', data: Buffer.from(letter[key]).toString('base64') })
    }
  }
  for (const file of letter.files ?? []) {
    message.addAttachment({
      inline: 'cid' in file, filename: file.name, contentType: file.type, data: content(file).toString('base64'),
      headers: file.cid ? { 'Content-ID': file.cid } : {},
    })
  }
  return Buffer.from(message.asRaw())
}

async function emailjsMimeBuilder(letter) {
  if (has(letter, 'charset', 'amp')) return null
  const Node = modules('emailjs-mime-builder').default
  const text = (kind, value) => new Node(`text/${kind}`).setContent(value)
  const file = (one) =>
    new Node(one.type, { filename: one.name || undefined }).setContent(new Uint8Array(content(one)))
      .setHeader(one.cid
        ? { 'content-id': `<${one.cid}>`, 'content-disposition': 'inline' }
        : { 'content-disposition': 'attachment' })
  const multipart = (kind, parts) => {
    if (parts.length === 1) return parts[0]
    const whole = new Node(`multipart/${kind}`)
    parts.forEach((part) => whole.appendChild(part))
    return whole
  }
  const files = letter.files ?? []
  const page = 'html' in letter
    ? [multipart('related', [text('html', letter.html), ...files.filter((one) => one.cid).map(file)])]
    : []
  const bodies = [...('text' in letter ? [text('plain', letter.text)] : []), ...page]
  if (letter.calendar) bodies.push(text('calendar; method=REQUEST', letter.calendar))
  const message = multipart('mixed', [
    multipart('alternative', bodies),
    ...files.filter((one) => !one.cid).map(file),
    ...(letter.message ? [new Node('message/rfc822').setContent(letter.message)] : []),
  ])
  const people = (pairs = []) => pairs.map(([name, address]) => ({ name, address }))
  message.setHeader({
    from: people(letter.from), to: people(letter.to), subject: letter.subject, ...letter.headers,
    ...(letter.cc ? { cc: people(letter.cc), 'reply-to': people(letter.reply_to) } : {}),
  })
  return Buffer.from(message.build())
}

async function mimemessage(letter) {
  if (has(letter, 'charset', 'amp', 'cc') || !/^[ -~]*$/.test(letter.subject + JSON.stringify(letter.to))) return null
  const { factory } = modules('mimemessage')
  const text = (kind, body) =>
    factory({ contentType: `text/${kind};charset=utf-8`, contentTransferEncoding: 'quoted-printable', body })
  const file = (one) => {
    const part = factory({
      contentType: one.type, contentTransferEncoding: 'base64', body: content(one).toString('base64'),
    })
    const name = one.name ? `;filename="${one.name}"` : ''
    part.header('Content-Disposition', `${one.cid ? 'inline' : 'attachment'} ${name}`)
    if (one.cid) part.header('Content-ID', `<${one.cid}>`)
    return part
  }
  const multipart = (kind, body) => (body.length === 1 ? body[0] : factory({ contentType: `multipart/${kind}`, body }))
  const files = letter.files ?? []
  const page = 'html' in letter
    ? [multipart('related', [text('html', letter.html), ...files.filter((one) => one.cid).map(file)])]
    : []
  const bodies = [...('text' in letter ? [text('plain', letter.text)] : []), ...page]
  if (letter.calendar) bodies.push(factory({ contentType: 'text/calendar;method=REQUEST', body: letter.calendar }))
  const message = multipart('mixed', [
    multipart('alternative', bodies),
    ...files.filter((one) => !one.cid).map(file),
    ...(letter.message ? [factory({ contentType: 'message/rfc822', body: letter.message })] : []),
  ])
  message.header('From', shown(letter.from[0]))
  message.header('To', letter.to.map(shown).join(', '))
  message.header('Subject', letter.subject)
  for (const [name, value] of headers(letter)) message.header(name, value)
  return Buffer.from(message.toString())
}

const builders = {
  nodemailer, emailjs, mimetext,
  'emailjs-mime-builder': emailjsMimeBuilder, mimemessage,
}
const letters = JSON.parse(readFileSync(join(here, 'letters.json'), 'utf8'))
const wanted = process.argv.slice(3)
for (const [builder, build] of Object.entries(builders)) {
  if (wanted.length && !wanted.includes(builder)) continue
  const folder = join(here, '..', builder)
  mkdirSync(folder, { recursive: true })
  for (const [name, given] of Object.entries(letters)) {
    const letter = { from: [['Shop', 'shop@sandbox.test']], to: [['', 'jane@example.net']], ...given }
    try {
      const octets = await build(letter)
      if (octets) {
        const lines = octets.toString('latin1').replace(/\r\n/g, '\n').replace(/\n/g, '\r\n')
        writeFileSync(join(folder, `${name}.eml`), Buffer.from(lines, 'latin1'))
      }
    } catch (error) {
      console.log(`${builder}/${name}: ${String(error).slice(0, 100)}`)
    }
  }
}
