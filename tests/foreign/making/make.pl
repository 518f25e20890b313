#!/usr/bin/perl
# Writes the letters with builders for Perl, from Debian's packages: `perl make.pl [BUILDER...]`.

use v5.32;
use warnings;
use utf8;
use Encode qw(encode encode_utf8);
use FindBin;
use JSON::PP;
use MIME::Base64;
use Email::MIME;
use MIME::Entity;
use MIME::Lite;
use Mail::Message;
use Mail::Message::Body::Lines;
use Mail::Message::Body::Multipart;

my @OF_CALENDARS = qw(calendar amp message);

sub content { my ($file) = @_; defined $file->{text} ? encode_utf8($file->{text}) : decode_base64($file->{base64}) }
sub has { my ($letter, @keys) = @_; grep { exists $letter->{$_} } @keys }
sub quoted { my ($name) = @_; $name =~ s/(["\\])/\\$1/g; "\"$name\"" }
sub people { my ($letter, $key) = @_; join ', ', map { $_->[0] ne '' ? quoted($_->[0]) . " <$_->[1]>" : $_->[1] } @{$letter->{$key} // []} }
sub words { my ($letter, $text) = @_; $text =~ /[^ -~]/ ? encode('MIME-Header', $text) : $text }
sub people_in_words {
    my ($letter, $key) = @_;
    join ', ', map { $_->[0] eq '' ? $_->[1] : ($_->[0] =~ /[^ -~]/ ? words($letter, $_->[0]) : quoted($_->[0])) . " <$_->[1]>" }
        @{$letter->{$key} // []};
}

sub email_mime {
    my ($letter) = @_;
    my $charset = $letter->{charset} // 'utf-8';
    return if has($letter, 'amp') || $charset eq 'hz-gb-2312';
    my $text = sub {
        my ($key, $kind) = @_;
        Email::MIME->create(
            attributes => {content_type => $kind, charset => $charset, encoding => 'quoted-printable'},
            body => encode($charset, $letter->{$key} =~ s/\r?\n/\r\n/gr));
    };
    my $file = sub {
        my ($one) = @_;
        Email::MIME->create(
            attributes => {
                content_type => $one->{type}, encoding => 'base64', disposition => $one->{cid} ? 'inline' : 'attachment',
                ($one->{name} ne '' ? (filename => $one->{name}, name => $one->{name}) : ()),
            },
            header => [$one->{cid} ? ('Content-ID' => "<$one->{cid}>") : ()],
            body => content($one));
    };
    my $multipart = sub {
        my ($kind, @parts) = @_;
        @parts == 1 ? $parts[0] : Email::MIME->create(attributes => {content_type => "multipart/$kind"}, parts => \@parts);
    };
    my @files = @{$letter->{files} // []};
    my @bodies;
    push @bodies, $text->('text', 'text/plain') if has($letter, 'text');
    push @bodies, $multipart->('related', $text->('html', 'text/html'), map { $file->($_) } grep { $_->{cid} } @files)
        if has($letter, 'html');
    push @bodies, Email::MIME->create(
        attributes => {content_type => 'text/calendar', charset => 'utf-8', encoding => '8bit'},
        body => $letter->{calendar}) if has($letter, 'calendar');
    $bodies[-1]->content_type_attribute_set(method => 'REQUEST') if has($letter, 'calendar');
    my $message = $multipart->('mixed',
        $multipart->('alternative', @bodies), (map { $file->($_) } grep { !$_->{cid} } @files),
        (has($letter, 'message') ? Email::MIME->create(
            attributes => {content_type => 'message/rfc822', disposition => 'attachment'}, body => $letter->{message}) : ()));
    $message->header_str_set(From => people($letter, 'from'));
    $message->header_str_set(To => people($letter, 'to'));
    $message->header_str_set(Cc => people($letter, 'cc')) if has($letter, 'cc');
    $message->header_str_set('Reply-To' => people($letter, 'reply_to')) if has($letter, 'reply_to');
    $message->header_str_set(Subject => $letter->{subject});
    $message->header_str_set($_ => $letter->{headers}{$_}) for sort keys %{$letter->{headers} // {}};
    $message->as_string;
}

sub mime_lite {
    my ($letter) = @_;
    return if has($letter, 'amp', 'charset');
    my %head = (
        From => people_in_words($letter, 'from'), To => people_in_words($letter, 'to'),
        Subject => words($letter, $letter->{subject}));
    $head{Cc} = people_in_words($letter, 'cc') if has($letter, 'cc');
    $head{'Reply-To'} = people_in_words($letter, 'reply_to') if has($letter, 'reply_to');
    $head{"$_:"} = $letter->{headers}{$_} for keys %{$letter->{headers} // {}};
    my $text = sub {
        my ($key, $kind) = @_;
        my $part = MIME::Lite->new(Type => $kind, Data => encode_utf8($letter->{$key}), Encoding => 'quoted-printable');
        $part->attr('content-type.charset' => 'utf-8');
        $part;
    };
    my $multipart = sub {
        my ($kind, @parts) = @_;
        return $parts[0] if @parts == 1;
        my $whole = MIME::Lite->new(Type => "multipart/$kind");
        $whole->attach($_) for @parts;
        $whole;
    };
    my $file = sub {
        my ($one) = @_;
        MIME::Lite->new(
            Type => $one->{type}, Data => content($one), Encoding => 'base64',
            Disposition => $one->{cid} ? 'inline' : 'attachment', ($one->{cid} ? (Id => "<$one->{cid}>") : ()),
            ($one->{name} ne '' ? (Filename => words($letter, $one->{name}) =~ s/\n\s*/ /gr) : ()));
    };
    my @files = @{$letter->{files} // []};
    my @bodies;
    push @bodies, $text->('text', 'text/plain') if has($letter, 'text');
    push @bodies, $multipart->('related', $text->('html', 'text/html'), map { $file->($_) } grep { $_->{cid} } @files)
        if has($letter, 'html');
    if (has($letter, 'calendar')) {
        push @bodies, MIME::Lite->new(Type => 'text/calendar', Data => $letter->{calendar}, Encoding => '7bit');
        $bodies[-1]->attr('content-type.method' => 'REQUEST');
    }
    my $message = $multipart->('mixed', $multipart->('alternative', @bodies), (map { $file->($_) } grep { !$_->{cid} } @files),
        (has($letter, 'message') ? MIME::Lite->new(Type => 'message/rfc822', Data => $letter->{message}, Encoding => '8bit') : ()));
    $message->add($_ => $head{$_}) for sort keys %head;
    $message->delete('X-Mailer');
    $message->as_string;
}

sub mime_entity {
    my ($letter, $encoding, $of_files) = @_;
    $encoding //= '-SUGGEST';
    return if has($letter, 'amp', 'charset');
    my @head = (From => people_in_words($letter, 'from'), To => people_in_words($letter, 'to'), Subject => words($letter, $letter->{subject}));
    push @head, Cc => people_in_words($letter, 'cc'), 'Reply-To' => people_in_words($letter, 'reply_to') if has($letter, 'cc');
    push @head, $_ => $letter->{headers}{$_} for sort keys %{$letter->{headers} // {}};
    my @text = (Type => 'text/plain', Charset => 'utf-8', Encoding => $encoding, Data => encode_utf8($letter->{text} // ''));
    my @html = (Type => 'text/html', Charset => 'utf-8', Encoding => $encoding, Data => encode_utf8($letter->{html} // ''));
    my @files = @{$letter->{files} // []};
    my $file = sub {
        my ($one) = @_;
        (Type => $one->{type}, Data => content($one), Encoding => $of_files // 'base64', Disposition => $one->{cid} ? 'inline' : 'attachment',
         ($one->{cid} ? (Id => "<$one->{cid}>") : ()),
         ($one->{name} ne '' ? (Filename => words($letter, $one->{name}) =~ s/\n\s*/ /gr) : ()));
    };
    if (!@files && !has($letter, 'calendar', 'message') && 1 == has($letter, 'text', 'html')) {
        return MIME::Entity->build(@head, has($letter, 'text') ? @text : @html)->as_string;
    }
    my $message = MIME::Entity->build(@head, Type => 'multipart/mixed');
    my $bodies = $message->attach(Type => 'multipart/alternative');
    $bodies->attach(@text) if has($letter, 'text');
    if (my @shown = grep { $_->{cid} } @files) {
        my $related = $bodies->attach(Type => 'multipart/related');
        $related->attach(@html);
        $related->attach($file->($_)) for @shown;
    } elsif (has($letter, 'html')) {
        $bodies->attach(@html);
    }
    $bodies->attach(Type => 'text/calendar; method=REQUEST', Charset => 'utf-8', Encoding => '7bit', Data => $letter->{calendar})
        if has($letter, 'calendar');
    $message->attach($file->($_)) for grep { !$_->{cid} } @files;
    $message->attach(Type => 'message/rfc822', Encoding => '8bit', Data => $letter->{message}) if has($letter, 'message');
    $message->as_string;
}

# What some old programs still write: files as uuencode, though as a transfer encoding.
sub mime_entity_uuencode {
    my ($letter) = @_;
    $letter->{files} && $letter->{subject} =~ /octets|^Invoice|Texts/ ? mime_entity($letter, '8bit', 'x-uuencode') : undef;
}

sub mail_message {
    my ($letter) = @_;
    return if has($letter, @OF_CALENDARS, 'charset');
    my @files = @{$letter->{files} // []};
    return if grep { $_->{cid} } @files;
    my $body = sub { my ($kind, $text) = @_; Mail::Message::Body->new(data => $text, mime_type => $kind, charset => 'PERL') };
    my @bodies;
    push @bodies, $body->('text/plain', $letter->{text}) if has($letter, 'text');
    push @bodies, $body->('text/html', $letter->{html}) if has($letter, 'html');
    my $whole = @bodies == 1 ? $bodies[0]
        : Mail::Message::Body::Multipart->new(mime_type => 'multipart/alternative', parts => \@bodies);
    my @attached = map {
        my $name = $_->{name};
        my $part = Mail::Message::Body->new(data => content($_), mime_type => $_->{type}, transfer_encoding => 'none');
        $part->disposition($name ne '' ? 'attachment; filename=' . quoted(words($letter, $name) =~ s/\n\s*/ /gr) : 'attachment');
        $part->encode(transfer_encoding => 'base64');
    } @files;
    $whole = Mail::Message::Body::Multipart->new(mime_type => 'multipart/mixed', parts => [$whole, @attached]) if @attached;
    my $message = Mail::Message->buildFromBody($whole->encode(charset => 'utf-8', $whole->isMultipart ? () : (transfer_encoding => 'quoted-printable')),
        From => people_in_words($letter, 'from'), To => people_in_words($letter, 'to'),
        (has($letter, 'cc') ? (Cc => people_in_words($letter, 'cc'), 'Reply-To' => people_in_words($letter, 'reply_to')) : ()),
        Subject => words($letter, $letter->{subject}), %{$letter->{headers} // {}});
    $message->string;
}

my $letters = decode_json(do { local (@ARGV, $/) = "$FindBin::Bin/letters.json"; <> });
my %wanted = map { $_ => 1 } @ARGV;
for my $builder (qw(email-mime mime-lite mime-entity mime-entity-uuencode mail-message)) {
    next if %wanted && !$wanted{$builder};
    mkdir "$FindBin::Bin/../$builder";
    my $build = main->can($builder =~ s/-/_/gr);
    for my $name (sort keys %$letters) {
        my $letter = {from => [['Shop', 'shop@sandbox.test']], to => [['', 'jane@example.net']], %{$letters->{$name}}};
        my $octets = eval { $build->($letter) };
        if ($@) { print "$builder/$name: ", substr($@, 0, 120) =~ s/\n/ /gr, "\n"; next }
        next unless defined $octets;
        utf8::encode($octets) if utf8::is_utf8($octets) && $octets =~ /[^\x00-\xff]/;
        utf8::downgrade($octets);
        $octets =~ s/\r?\n/\r\n/g;
        open my $out, '>:raw', "$FindBin::Bin/../$builder/$name.eml" or die $!;
        print $out $octets;
    }
}
