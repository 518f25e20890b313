/* The least that a milter can do: be shown a whole message, as ours is, and discard it. The ceiling of what is measured. */
#include <libmilter/mfapi.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* Postfix is asked for what we are asked for: the envelope, header and body are sent and not answered. */
static const unsigned long WANTED = SMFIP_HDR_LEADSPC | SMFIP_NR_MAIL | SMFIP_NR_RCPT | SMFIP_NR_HDR | SMFIP_NR_BODY |
                                    SMFIP_NOCONNECT | SMFIP_NOHELO | SMFIP_NODATA | SMFIP_NOEOH | SMFIP_NOUNKNOWN;

static sfsistat negotiate(SMFICTX *session, unsigned long actions, unsigned long steps, unsigned long unused2,
                          unsigned long unused3, unsigned long *wanted_actions, unsigned long *wanted_steps,
                          unsigned long *wanted2, unsigned long *wanted3) {
  (void)session, (void)actions, (void)unused2, (void)unused3;
  if ((steps & WANTED) != WANTED) {
    fputs("null_milter: Postfix does not offer what is to be compared\n", stderr);
    return SMFIS_REJECT;
  }
  *wanted_actions = 0;
  *wanted_steps = WANTED;
  *wanted2 = *wanted3 = 0;
  return SMFIS_CONTINUE;
}

static sfsistat envelope(SMFICTX *session, char **arguments) {
  (void)session, (void)arguments;
  return SMFIS_NOREPLY;
}

static sfsistat header(SMFICTX *session, char *name, char *value) {
  (void)session, (void)name, (void)value;
  return SMFIS_NOREPLY;
}

static sfsistat body(SMFICTX *session, unsigned char *chunk, size_t length) {
  (void)session, (void)chunk, (void)length;
  return SMFIS_NOREPLY;
}

static sfsistat end_of_message(SMFICTX *session) {
  (void)session;
  return SMFIS_DISCARD;
}

static struct smfiDesc milter = {
    .xxfi_name = "null",
    .xxfi_version = SMFI_VERSION,
    .xxfi_negotiate = negotiate,
    .xxfi_envfrom = envelope,
    .xxfi_envrcpt = envelope,
    .xxfi_header = header,
    .xxfi_body = body,
    .xxfi_eom = end_of_message,
};

int main(int count, char **arguments) {
  char address[512];
  if (count != 2) {
    fputs("usage: null_milter SOCKET\n", stderr);
    return 64;
  }
  /* The user postfix is to connect; the directory is only this measurement's. */
  umask(0);
  snprintf(address, sizeof address, "unix:%s", arguments[1]);
  if (smfi_setconn(address) != MI_SUCCESS || smfi_register(milter) != MI_SUCCESS || smfi_setbacklog(512) != MI_SUCCESS) {
    fputs("null_milter: libmilter refused\n", stderr);
    return 1;
  }
  return smfi_main() == MI_SUCCESS ? 0 : 1;
}
