{{- define "xgen-model.selector" -}}
app.kubernetes.io/name: xgen-model
{{- end }}
{{- define "xgen-model.labels" -}}
{{ include "xgen-model.selector" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
{{- /* How a probe asks: of (startup|live|ready, the values of tls). */}}
{{- define "xgen-model.probe" -}}
{{- $tls := index . 1 -}}
{{- if and $tls.enabled $tls.clientCertificates -}}
exec: {command: [/usr/bin/xgen-model, healthcheck, {{ index . 0 }}]}
{{- else -}}
httpGet: {path: /health/{{ index . 0 }}, port: http{{ if $tls.enabled }}, scheme: HTTPS{{ end }}}
{{- end }}
{{- end }}
