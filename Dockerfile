# The whole product in one image; compose.yaml runs it as one container for each process.
# First `make deb` on Debian 12: the image holds the very package that a host would.
FROM debian:bookworm-slim

ENV DEBIAN_FRONTEND=noninteractive
COPY dist/opensend-milter_*.deb /tmp/
# Nothing is started by the packages' scripts, and the program's accounts need Postfix's group.
RUN printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d \
 && chmod 755 /usr/sbin/policy-rc.d \
 && apt-get update \
 && apt-get install -y --no-install-recommends \
      ca-certificates dovecot-core dovecot-pgsql postfix systemd-standalone-sysusers systemd-standalone-tmpfiles \
      /tmp/opensend-milter_*.deb \
 && systemd-tmpfiles --create opensend-milter.conf \
 && rm -rf /var/lib/apt/lists/* /tmp/*.deb /usr/sbin/policy-rc.d
COPY packaging/container/start packaging/container/render.py /usr/lib/opensend-milter/container/

# Each process is started as its own account, or gives up root by itself (Postfix, Dovecot).
ENTRYPOINT ["/usr/lib/opensend-milter/container/start"]
CMD ["http"]
HEALTHCHECK NONE
