#!/bin/sh
# HAProxy as Ray Serve starts it (-db -f FILE ...), less what Serve's FILE would open and say: its figures and statistics are for
# this machine, its admin socket for this user, and where no front can be reached the answer has the endpoint's one shape. A
# front, which is asked from this machine, is told whose request it is: without a key it answers nobody else's.
set -eu
file=$3
folder=${file%/*}
if ! [ -O "$folder" ]; then # it could change FILE, or put a link where an answer is written
  echo "$folder belongs to another user: remove it, or name a folder of your own by RAY_SERVE_HAPROXY_CONFIG_FILE_LOC" >&2
  exit 1
fi
answer() { # STATUS REASON HEADER CODE MESSAGE
  body="{\"error\":{\"code\":\"$4\",\"message\":\"$5\",\"type\":\"server_error\",\"param\":null}}"
  printf 'HTTP/1.1 %s %s\r\nContent-Type: application/json\r\n%s\r\nContent-Length: %s\r\n\r\n%s' \
    "$1" "$2" "$3" "${#body}" "$body" > "$folder/$1.json.http"
}
answer 500 'Internal Server Error' 'Cache-Control: no-store' internal_error 'the endpoint failed at this request; its log says why'
answer 503 'Service Unavailable' 'Retry-After: 5' unavailable 'nobody is there to answer; try again later'
sed -i \
  -e 's/^\( *stats socket .* mode \)666 /\1600 /' \
  -e 's/^frontend http_frontend *$/&\n    option forwardfor/' \
  -e 's/^\( *bind \):\([0-9]*\) *$/\1127.0.0.1:\2/' \
  -e '/^listen stats/,$s/^\( *bind \)\*:/\1127.0.0.1:/' \
  -e "s#^\( *errorfile 50[24] \).*#\1$folder/500.json.http#" \
  -e "s#^\( *errorfile 503 \).*#\1$folder/503.json.http#" \
  "$file"
if ! grep -q '^ *use_backend ' "$file"; then # it has just begun and knows no application yet
  sed -i "s#^\( *http-request return status \)404 .* lf-string .*#\1503 errorfile $folder/503.json.http#" "$file"
fi
exec "$SLM_RAY_HAPROXY" "$@"
