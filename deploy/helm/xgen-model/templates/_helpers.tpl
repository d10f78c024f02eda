{{- define "xgen-model.selector" -}}
app.kubernetes.io/name: xgen-model
{{- end }}
{{- define "xgen-model.labels" -}}
{{ include "xgen-model.selector" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
