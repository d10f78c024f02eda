export DB_PASS=p4ss-of-the-database VLLM_ADMIN_PASSWORD='$dollar-in-it' API_KEYS=first-of-keys,second-of-keys
export SERVE_API_KEY=serve-api-key RAY_AUTH_TOKEN=ray-auth-token HF_API_TOKEN=api-token-of-hf
export OTEL_EXPORTER_OTLP_HEADERS="authorization=Basic dXNlcjpwYXNzd29yZA=="
EXTRA="--api-key tinyk"
docker login -u me -p password-of-docker registry
huggingface-cli login --token ghp_0123456789abcdef
curl -u admin:password-of-curl http://example.org/start
sshpass -p password-of-ssh ssh host <<< "word-on-stdin"
READY=$(curl -H "X-Auth: in-a-substitution" http://example.org)
vllm serve a/b $EXTRA --middleware a.module.with.a.very.long.name.so.that.what.follows.is.cut.in.the.middle.of.the.secret.that.is.known.from.elsewhere.as.it.was.given.to.docker.p4ss-of-the-database
