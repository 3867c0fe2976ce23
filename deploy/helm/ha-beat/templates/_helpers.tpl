{{- define "ha-beat.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains "ha-beat" .Release.Name -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-ha-beat" (.Release.Name | trunc 42 | trimSuffix "-") }}
{{- end -}}
{{- end -}}

{{- define "ha-beat.selector" -}}
app.kubernetes.io/name: ha-beat
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: beat
{{- end -}}

{{- define "ha-beat.labels" -}}
{{ include "ha-beat.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "ha-beat.image" -}}
{{ .Values.image.repository }}{{ if contains "@" .Values.image.repository | not }}:{{ .Values.image.tag | default "latest" }}{{ end }}
{{- end -}}

{{- define "ha-beat.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "ha-beat.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{/* The test's pod needs these too, or it waits for a node, an image or a name server. */}}
{{- define "ha-beat.placement" -}}
{{- range $name := list "imagePullSecrets" "dnsPolicy" "dnsConfig" "nodeSelector" "tolerations" }}
{{- with index $.Values $name }}
{{ dict $name . | toYaml }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "ha-beat.config" -}}
HA_BEAT_HTTP_BIND: {{ printf "%s:%d" .Values.http.host (int .Values.http.port) | quote }}
{{- range $name, $value := .Values.settings }}
{{- /* Null in a values file removes a value. */}}
{{- if not (kindIs "invalid" $value) }}
{{ printf "HA_BEAT_%s" (upper $name) }}: {{ include "ha-beat.setting" $value | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Helm parses whole numbers as floats and would render a million as 1e+06. */}}
{{- define "ha-beat.setting" -}}
{{- if kindIs "map" . -}}
{{ toJson . }}
{{- else if and (kindIs "float64" .) (eq (floor .) .) -}}
{{ int64 . }}
{{- else -}}
{{ . | toString }}
{{- end -}}
{{- end -}}

{{/* The configured ports, and the ports in redis.url. A password before an @ does not match. */}}
{{- define "ha-beat.egress" -}}
{{- $ports := list -}}
{{- range .Values.networkPolicy.egressPorts -}}
{{- $ports = append $ports (int .) -}}
{{- end -}}
{{- if not (.Values.redis).existingSecret -}}
{{- range regexFindAll ":[0-9]{2,5}([/,;?]|$)" ((.Values.redis).url | default "") -1 -}}
{{- $ports = append $ports (regexFind "[0-9]+" . | int) -}}
{{- end -}}
{{- end -}}
{{ uniq $ports | toJson }}
{{- end -}}
