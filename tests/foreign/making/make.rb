# Writes the letters with Ruby's mail, from Debian's package: `ruby make.rb`.
require 'base64'
require 'fileutils'
require 'json'
require 'mail'

def content(file)
  file['text'] || Base64.decode64(file['base64'])
end

def people(letter, key)
  (letter[key] || []).map { |name, address| name.empty? ? address : Mail::Address.new.tap { |one| one.address = address; one.display_name = name }.format }
end

def text(letter, key, kind)
  letter_charset = letter['charset'] || 'UTF-8'
  Mail::Part.new do
    content_type "#{kind}; charset=#{letter_charset}"
    body letter[key].encode(letter_charset)
  end
end

def ruby_mail(letter)
  return if letter['amp']
  mail = Mail.new
  mail.charset = letter['charset'] || 'UTF-8'
  mail.from = people(letter, 'from')
  mail.to = people(letter, 'to')
  mail.cc = people(letter, 'cc') if letter['cc']
  mail.reply_to = people(letter, 'reply_to') if letter['reply_to']
  mail.bcc = 'secret@example.net'
  mail.subject = letter['charset'] ? letter['subject'].encode(letter['charset']) : letter['subject']
  (letter['headers'] || {}).each { |name, value| mail[name] = value }
  files = letter['files'] || []
  if files.empty? && !letter['calendar'] && !letter['message'] && !(letter['text'] && letter['html'])
    mail.content_type = "text/#{letter['text'] ? 'plain' : 'html'}; charset=#{mail.charset}"
    mail.body = (letter['text'] || letter['html']).encode(mail.charset)
  else
    mail.text_part = text(letter, 'text', 'text/plain') if letter['text']
    mail.html_part = text(letter, 'html', 'text/html') if letter['html']
    files.each do |file|
      given = { mime_type: file['type'], content: content(file) }
      if file['cid']
        mail.attachments.inline[file['name']] = given
        mail.attachments.last.content_id = "<#{file['cid']}>"
      else
        mail.attachments[file['name']] = given
      end
    end
    if letter['calendar']
      mail.add_part(Mail::Part.new { content_type 'text/calendar; method=REQUEST; charset=UTF-8'; body letter['calendar'] })
    end
    mail.attachments['complaint.eml'] = { mime_type: 'message/rfc822', content: letter['message'] } if letter['message']
  end
  mail.encoded
end

letters = JSON.parse(File.read(File.join(__dir__, 'letters.json')))
folder = File.join(__dir__, '..', 'ruby-mail')
FileUtils.mkdir_p(folder)
letters.each do |name, given|
  letter = { 'from' => [['Shop', 'shop@sandbox.test']], 'to' => [['', 'jane@example.net']] }.merge(given)
  begin
    octets = ruby_mail(letter)
  rescue StandardError => error
    puts "ruby-mail/#{name}: #{error.class} #{error.message}"[0, 150]
    next
  end
  File.binwrite(File.join(folder, "#{name}.eml"), octets.b.gsub("\r\n", "\n").gsub("\n", "\r\n")) if octets
end
