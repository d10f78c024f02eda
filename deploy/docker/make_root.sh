#!/bin/sh
# make_root.sh PROGRAM FOLDER: the file system of the image: the program with the shared libraries that it names, what
# glibc reads, the certificates, and the licences of all that is inside.
set -eu
program=$1
root=$2

install -D "$program" "$root/usr/bin/xgen-model"
strip --strip-debug "$root/usr/bin/xgen-model"
for library in $(ldd "$program" | grep -o '/[^ ]*'); do
  install -D "$library" "$root$library"
done
install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
install -d "$root/var/cache/xgen-model"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
echo 'xgen-model:x:10001:10001::/var/cache/xgen-model:/usr/sbin/nologin' >"$root/etc/passwd"
echo 'xgen-model:x:10001:' >"$root/etc/group"

# Scanners of images look here for the versions of Debian's packages.
install -d "$root/var/lib/dpkg/status.d"
for package in libc6 ca-certificates; do
  dpkg-query -s "$package" >"$root/var/lib/dpkg/status.d/$package"
done
cp /usr/lib/os-release "$root/etc/os-release"
for package in libc6 ca-certificates gcc-12-base libboost1.81-dev libssl-dev libyaml-cpp-dev libpcre2-dev libutf8proc-dev libcli11-dev; do
  install -D -m 644 "/usr/share/doc/$package/copyright" "$root/usr/share/doc/$package/copyright"
done
install -D -m 644 LICENSE "$root/usr/share/doc/xgen-model/copyright"
