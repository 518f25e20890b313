<?php
// Writes the letters with builders for PHP, from Debian's packages: `php make.php [BUILDER...]`.

require 'Mail/mime.php';
require 'libphp-phpmailer/autoload.php';
require 'Symfony/Component/Mime/autoload.php';
require 'Egulias/EmailValidator/autoload.php';

use PHPMailer\PHPMailer\PHPMailer;
use Symfony\Component\Mime\Address;
use Symfony\Component\Mime\Email;
use Symfony\Component\Mime\Part\DataPart;
use Symfony\Component\Mime\Part\Multipart\AlternativePart;
use Symfony\Component\Mime\Part\TextPart;

function content(array $file): string
{
    return $file['text'] ?? base64_decode($file['base64']);
}

function in_charset(array $letter, string $key): string
{
    $text = $letter[$key] ?? '';
    $octets = isset($letter['charset']) ? @iconv('utf-8', $letter['charset'], $text) : $text;
    return $octets === false ? throw new ValueError("no {$letter['charset']}") : $octets;
}

function phpmailer(array $letter): ?string
{
    if (isset($letter['amp'])) {
        return null;
    }
    $mail = new PHPMailer(true);
    $mail->CharSet = $letter['charset'] ?? 'utf-8';
    $mail->Encoding = 'quoted-printable';
    $mail->setFrom($letter['from'][0][1], $letter['from'][0][0]);
    foreach (['to' => 'addAddress', 'cc' => 'addCC', 'reply_to' => 'addReplyTo'] as $key => $add) {
        foreach ($letter[$key] ?? [] as [$name, $address]) {
            $mail->$add($address, $name);
        }
    }
    $mail->Subject = in_charset($letter, 'subject');
    $mail->AllowEmpty = true;
    if (isset($letter['html'])) {
        $mail->isHTML(true);
        $mail->Body = $letter['html'];
        $mail->AltBody = $letter['text'] ?? '';
    } else {
        $mail->Body = in_charset($letter, 'text');
    }
    $mail->Ical = $letter['calendar'] ?? '';
    foreach ($letter['headers'] ?? [] as $name => $value) {
        $mail->addCustomHeader($name, $value);
    }
    foreach ($letter['files'] ?? [] as $file) {
        if (isset($file['cid'])) {
            $mail->addStringEmbeddedImage(content($file), $file['cid'], $file['name'], 'base64', $file['type']);
        } else {
            $mail->addStringAttachment(content($file), $file['name'], 'base64', $file['type']);
        }
    }
    if (isset($letter['message'])) {
        $mail->addStringAttachment($letter['message'], 'complaint.eml', '7bit', 'message/rfc822');
    }
    $mail->preSend();
    return $mail->getSentMIMEMessage();
}

function mail_mime(array $letter): ?string
{
    if (isset($letter['amp']) || isset($letter['charset'])) {
        return null;
    }
    $mail = new Mail_mime([
        'eol' => "\r\n", 'head_charset' => 'utf-8', 'text_charset' => 'utf-8', 'html_charset' => 'utf-8',
        'calendar_method' => 'REQUEST',
    ]);
    if (isset($letter['text'])) {
        $mail->setTXTBody($letter['text']);
    }
    if (isset($letter['html'])) {
        $mail->setHTMLBody($letter['html']);
    }
    if (isset($letter['calendar'])) {
        $mail->setCalendarBody($letter['calendar'], false, false, 'request', 'utf-8');
    }
    foreach ($letter['files'] ?? [] as $file) {
        if (isset($file['cid'])) {
            $mail->addHTMLImage(content($file), $file['type'], $file['name'], false, $file['cid']);
        } else {
            $mail->addAttachment(content($file), $file['type'], $file['name'], false, h_charset: 'utf-8');
        }
    }
    if (isset($letter['message'])) {
        $mail->addAttachment($letter['message'], 'message/rfc822', 'complaint.eml', false, '7bit');
    }
    $body = $mail->get();
    $people = fn (string $key): string => implode(', ', array_map(
        fn (array $pair): string => $pair[0] === '' ? $pair[1] : '"' . addcslashes($pair[0], '"\\') . "\" <$pair[1]>",
        $letter[$key] ?? [],
    ));
    $headers = array_filter([
        'From' => $people('from'), 'To' => $people('to'), 'Cc' => $people('cc'), 'Reply-To' => $people('reply_to'),
    ]);
    return $mail->txtHeaders($headers + ['Subject' => $letter['subject']] + ($letter['headers'] ?? []))
        . "\r\n" . $body;
}

function symfony_mime(array $letter): ?string
{
    if (isset($letter['charset'])) {
        return null;
    }
    $people = fn (string $key): array => array_map(
        fn (array $pair): Address => new Address($pair[1], $pair[0]),
        $letter[$key] ?? [],
    );
    $mail = (new Email())->from(...$people('from'))->to(...$people('to'))->cc(...$people('cc'))
        ->replyTo(...$people('reply_to'))->bcc('secret@example.net')->subject($letter['subject']);
    foreach ($letter['headers'] ?? [] as $name => $value) {
        $mail->getHeaders()->addTextHeader($name, $value);
    }
    if (isset($letter['amp']) || isset($letter['calendar'])) {
        $mail->setBody(new AlternativePart(
            new TextPart($letter['text']),
            ...(isset($letter['amp']) ? [new TextPart($letter['amp'], 'utf-8', 'x-amp-html')] : []),
            ...[new TextPart($letter['html'], 'utf-8', 'html')],
            ...(isset($letter['calendar']) ? [new TextPart($letter['calendar'], 'utf-8', 'calendar; method=REQUEST')] : []),
        ));
        return $mail->toString();
    }
    if (isset($letter['text'])) {
        $mail->text($letter['text']);
    }
    if (isset($letter['html'])) {
        $mail->html($letter['html']);
    }
    foreach ($letter['files'] ?? [] as $file) {
        if (isset($file['cid'])) {
            $mail->html(str_replace("cid:{$file['cid']}", "cid:{$file['name']}", $letter['html']));
            $mail->embed(content($file), $file['name'], $file['type']);
        } else {
            $mail->attach(content($file), $file['name'] ?: null, $file['type']);
        }
    }
    if (isset($letter['message'])) {
        $mail->attach($letter['message'], 'complaint.eml', 'message/rfc822');
    }
    return $mail->toString();
}

foreach (['phpmailer', 'mail_mime', 'symfony_mime'] as $build) {
    $builder = str_replace('_', '-', $build);
    if ($argc > 1 && !in_array($builder, $argv)) {
        continue;
    }
    @mkdir(__DIR__ . "/../$builder");
    foreach (json_decode(file_get_contents(__DIR__ . '/letters.json'), true) as $name => $letter) {
        $letter += ['from' => [['Shop', 'shop@sandbox.test']], 'to' => [['', 'jane@example.net']]];
        try {
            $octets = $build($letter);
        } catch (Throwable $error) {
            echo "$builder/$name: {$error->getMessage()}\n";
            continue;
        }
        if ($octets !== null) {
            $lines = str_replace("\n", "\r\n", str_replace("\r\n", "\n", $octets));
            file_put_contents(__DIR__ . "/../$builder/$name.eml", $lines);
        }
    }
}
