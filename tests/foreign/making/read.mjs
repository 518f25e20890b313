// Has two readers that know nothing of ours read the messages: `node read.mjs MODULES`, MODULES being where npm installed
// them. What they say is written to NAME/readers.json beside the messages.
import { createHash } from 'node:crypto'
import { readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

const here = dirname(fileURLToPath(import.meta.url))
const modules = createRequire(resolve(process.argv[2], 'x.js'))
const { simpleParser } = modules('mailparser')
const PostalMime = modules('postal-mime')
const parse = PostalMime.parse ?? PostalMime.default.parse
const lines = (octets) => octets.toString('latin1').replace(/\r\n/g, '\n').replace(/\n+$/, '')
const digest = (octets) => createHash('sha256').update(lines(octets), 'latin1').digest('hex').slice(0, 16)
const flat = (people) => (people ?? []).flatMap((one) => (one.group ? one.group : [one]))
const pairs = (people) => flat(people).map((one) => [one.name ?? '', one.address ?? ''])
const lists = (field) => [field ?? []].flat().flatMap((one) => one.value ?? [])

async function mailparser(octets) {
  const found = await simpleParser(octets, {
    skipHtmlToText: true, skipTextToHtml: true, skipImageLinks: true, skipTextLinks: true, keepDeliveryStatus: true,
  })
  return {
    subject: found.subject ?? '', from: pairs(lists(found.from)), to: pairs(lists(found.to)), cc: pairs(lists(found.cc)),
    reply_to: pairs(lists(found.replyTo)), text: found.text || '', html: found.html || '',
    files: found.attachments.map((file) => ({
      name: file.filename ?? null, type: file.contentType, cid: file.cid ?? null,
      digest: digest(file.content),
    })),
  }
}

async function postalMime(octets) {
  const found = await parse(octets, { forceRfc822Attachments: true, attachmentEncoding: 'arraybuffer' })
  return {
    subject: found.subject ?? '', from: pairs([found.from ?? []].flat()), to: pairs(found.to), cc: pairs(found.cc),
    reply_to: pairs(found.replyTo), text: found.text || '', html: found.html || '',
    files: found.attachments.map((file) => {
      const content = Buffer.from(file.content)
      return {
        name: file.filename ?? null, type: file.mimeType, cid: file.contentId?.replace(/[<>]/g, '') ?? null,
        digest: digest(content),
      }
    }),
  }
}

for (const builder of readdirSync(join(here, '..')).sort()) {
  const folder = join(here, '..', builder)
  if (builder === 'making' || !statSync(folder).isDirectory()) continue
  const said = {}
  for (const file of readdirSync(folder).filter((one) => one.endsWith('.eml')).sort()) {
    const octets = readFileSync(join(folder, file))
    const both = {}
    for (const [reader, read] of [['mailparser', mailparser], ['postal-mime', postalMime]]) {
      try {
        both[reader] = await read(octets)
      } catch (error) {
        both[reader] = { error: String(error).slice(0, 100) }
      }
    }
    said[file.replace(/\.eml$/, '')] = both
  }
  writeFileSync(join(folder, 'readers.json'), JSON.stringify(said, null, 1) + '\n')
}
