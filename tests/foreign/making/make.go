// Writes the letters with Go's standard library and emersion's go-message, from Debian's packages:
// GO111MODULE=off GOPATH=/usr/share/gocode go run make.go
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	netmail "net/mail"
	"net/textproto"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/emersion/go-message/mail"
)

type file struct{ Name, Type, Text, Base64, Cid string }

type letter struct {
	From, To, Cc                             [][2]string
	ReplyTo                                  [][2]string `json:"reply_to"`
	Subject, Charset, Calendar, Amp, Message string
	Text, HTML                               *string
	Files                                    []file
	Headers                                  map[string]string
}

func (f file) content() []byte {
	if f.Text != "" {
		return []byte(f.Text)
	}
	octets, err := base64.StdEncoding.DecodeString(f.Base64)
	must(err)
	return octets
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func sorted(headers map[string]string) []string {
	names := make([]string, 0, len(headers))
	for name := range headers {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

func emersion(l letter) []byte {
	people := func(pairs [][2]string) []*mail.Address {
		found := []*mail.Address{}
		for _, pair := range pairs {
			found = append(found, &mail.Address{Name: pair[0], Address: pair[1]})
		}
		return found
	}
	var head mail.Header
	head.SetAddressList("From", people(l.From))
	head.SetAddressList("To", people(l.To))
	if l.Cc != nil {
		head.SetAddressList("Cc", people(l.Cc))
		head.SetAddressList("Reply-To", people(l.ReplyTo))
	}
	head.SetSubject(l.Subject)
	for _, name := range sorted(l.Headers) {
		head.Set(name, l.Headers[name])
	}
	var out bytes.Buffer
	whole, err := mail.CreateWriter(&out, head)
	must(err)
	bodies, err := whole.CreateInline()
	must(err)
	body := func(kind, text string) {
		var head mail.InlineHeader
		head.SetContentType(kind, map[string]string{"charset": "utf-8"})
		if kind == "text/calendar" {
			head.SetContentType(kind, map[string]string{"charset": "utf-8", "method": "REQUEST"})
		}
		part, err := bodies.CreatePart(head)
		must(err)
		_, err = io.WriteString(part, text)
		must(err)
		must(part.Close())
	}
	if l.Text != nil {
		body("text/plain", *l.Text)
	}
	if l.Amp != "" {
		body("text/x-amp-html", l.Amp)
	}
	if l.HTML != nil {
		body("text/html", *l.HTML)
	}
	if l.Calendar != "" {
		body("text/calendar", l.Calendar)
	}
	must(bodies.Close())
	attach := func(head mail.AttachmentHeader, octets []byte) {
		part, err := whole.CreateAttachment(head)
		must(err)
		_, err = part.Write(octets)
		must(err)
		must(part.Close())
	}
	for _, f := range l.Files {
		var head mail.AttachmentHeader
		head.SetContentType(f.Type, nil)
		if f.Name != "" {
			head.SetFilename(f.Name)
		}
		if f.Cid != "" {
			head.Set("Content-Id", "<"+f.Cid+">")
		}
		attach(head, f.content())
	}
	if l.Message != "" {
		var head mail.AttachmentHeader
		head.SetContentType("message/rfc822", nil)
		head.Set("Content-Transfer-Encoding", "8bit")
		head.SetFilename("complaint.eml")
		attach(head, []byte(l.Message))
	}
	must(whole.Close())
	return out.Bytes()
}

// standard writes as applications without a package do.
func standard(l letter) []byte {
	var out bytes.Buffer
	people := func(pairs [][2]string) string {
		found := []string{}
		for _, pair := range pairs {
			found = append(found, (&netmail.Address{Name: pair[0], Address: pair[1]}).String())
		}
		return strings.Join(found, ",\r\n ")
	}
	fmt.Fprintf(&out, "From: %s\r\nTo: %s\r\n", people(l.From), people(l.To))
	if l.Cc != nil {
		fmt.Fprintf(&out, "Cc: %s\r\nReply-To: %s\r\n", people(l.Cc), people(l.ReplyTo))
	}
	fmt.Fprintf(&out, "Subject: %s\r\n", mime.QEncoding.Encode("utf-8", l.Subject))
	for _, name := range sorted(l.Headers) {
		fmt.Fprintf(&out, "%s: %s\r\n", name, l.Headers[name])
	}
	whole := multipart.NewWriter(&out)
	fmt.Fprintf(&out, "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=%s\r\n\r\n", whole.Boundary())
	var inner bytes.Buffer
	bodies := multipart.NewWriter(&inner)
	body := func(kind, text string) {
		part, err := bodies.CreatePart(textproto.MIMEHeader{
			"Content-Type": {kind}, "Content-Transfer-Encoding": {"quoted-printable"},
		})
		must(err)
		quoted := quotedprintable.NewWriter(part)
		_, err = io.WriteString(quoted, text)
		must(err)
		must(quoted.Close())
	}
	if l.Text != nil {
		body("text/plain; charset=utf-8", *l.Text)
	}
	if l.Amp != "" {
		body("text/x-amp-html; charset=utf-8", l.Amp)
	}
	if l.HTML != nil {
		body("text/html; charset=utf-8", *l.HTML)
	}
	if l.Calendar != "" {
		body("text/calendar; charset=utf-8; method=REQUEST", l.Calendar)
	}
	must(bodies.Close())
	part, err := whole.CreatePart(textproto.MIMEHeader{
		"Content-Type": {"multipart/alternative; boundary=" + bodies.Boundary()},
	})
	must(err)
	_, err = part.Write(inner.Bytes())
	must(err)
	for _, f := range l.Files {
		kind, given := "attachment", map[string]string{}
		if f.Name != "" {
			given["filename"] = f.Name
		}
		head := textproto.MIMEHeader{"Content-Type": {f.Type}, "Content-Transfer-Encoding": {"base64"}}
		if f.Cid != "" {
			kind = "inline"
			head.Set("Content-ID", "<"+f.Cid+">")
		}
		head.Set("Content-Disposition", mime.FormatMediaType(kind, given))
		part, err := whole.CreatePart(head)
		must(err)
		letters := base64.StdEncoding.EncodeToString(f.content())
		for len(letters) > 76 {
			fmt.Fprintf(part, "%s\r\n", letters[:76])
			letters = letters[76:]
		}
		fmt.Fprintf(part, "%s", letters)
	}
	if l.Message != "" {
		part, err := whole.CreatePart(textproto.MIMEHeader{"Content-Type": {"message/rfc822"}})
		must(err)
		_, err = io.WriteString(part, l.Message)
		must(err)
	}
	must(whole.Close())
	return out.Bytes()
}

func main() {
	octets, err := os.ReadFile("letters.json")
	must(err)
	letters := map[string]letter{}
	must(json.Unmarshal(octets, &letters))
	builders := map[string]func(letter) []byte{
		"go-message": emersion, "go-multipart": standard,
	}
	for builder, build := range builders {
		folder := filepath.Join("..", builder)
		must(os.MkdirAll(folder, 0o755))
		for name, l := range letters {
			if l.Charset != "" {
				continue
			}
			if l.From == nil {
				l.From = [][2]string{{"Shop", "shop@sandbox.test"}}
			}
			if l.To == nil {
				l.To = [][2]string{{"", "jane@example.net"}}
			}
			if octets := build(l); octets != nil {
				lines := bytes.ReplaceAll(bytes.ReplaceAll(octets, []byte("\r\n"), []byte("\n")), []byte("\n"), []byte("\r\n"))
				must(os.WriteFile(filepath.Join(folder, name+".eml"), lines, 0o644))
			}
		}
	}
}
