{{/*
The capacity check: does a model fit its accelerators? src/inference_plane/fit.py does the same arithmetic.
*/}}

{{/*
plane.fit: takes a resolved model (plane.models), gives JSON. It fits where weights, overhead and the KV cache of one
sequence of maxModelLen fit the memory that vLLM may use; vLLM itself refuses to start with a KV cache smaller than one
such sequence. On Neuron memoryGiB and tensorParallelSize both count cores.
  haveGiB              memoryGiB x tensorParallelSize x gpuMemoryUtilization
  weightsGiB           of the entry
  overheadGiB          overheadGiB x tensorParallelSize
  kvGiBPerSequence     maxModelLen x kvBytesPerToken
  needGiB              weights + overhead + one sequence
  kvGiB                what weights and overhead leave for the KV cache
  worstCaseConcurrency, typicalConcurrency
                       sequences that run at once when each has maxModelLen tokens, or a quarter of it; never more
                       than maxNumSeqs
  fits                 whether needGiB <= haveGiB
*/}}
{{- define "plane.fit" -}}
{{- $size := .tensorParallelSize | int -}}
{{- $have := mulf .hardware.memoryGiB $size .gpuMemoryUtilization -}}
{{- $overhead := mulf .overheadGiB $size -}}
{{- $sequence := divf (mulf .maxModelLen .kvBytesPerToken) 1073741824 -}}
{{- $need := addf .weightsGiB $overhead $sequence -}}
{{- $kv := subf $have .weightsGiB $overhead | maxf 0 -}}
{{- $fit := dict "haveGiB" $have "needGiB" $need "kvGiB" $kv -}}
{{- $_ := set $fit "weightsGiB" (float64 .weightsGiB) -}}
{{- $_ := set $fit "overheadGiB" $overhead -}}
{{- $_ := set $fit "kvGiBPerSequence" $sequence -}}
{{- $_ := set $fit "worstCaseConcurrency" (divf $kv $sequence | floor | int | min .maxNumSeqs) -}}
{{- $_ := set $fit "typicalConcurrency" (divf (mulf 4 $kv) $sequence | floor | int | min .maxNumSeqs) -}}
{{- $_ := set $fit "fits" (le $need $have) -}}
{{- toJson $fit -}}
{{- end -}}

{{/* plane.fitRefusal: why a resolved model does not fit and what to set; nothing where it fits. */}}
{{- define "plane.fitRefusal" -}}
{{- $fit := include "plane.fit" . | fromJson -}}
{{- if not $fit.fits -}}
{{- $remedies := list -}}
{{- $sizes := list -}}
{{- range list 2 4 8 16 32 64 -}}
{{- $larger := mergeOverwrite (deepCopy $) (dict "tensorParallelSize" .) -}}
{{- $fits := and (include "plane.fitsOneNode" $larger) (include "plane.fit" $larger | fromJson).fits -}}
{{- if and $fits (gt . ($.tensorParallelSize | int)) -}}
{{- $sizes = append $sizes . -}}
{{- end -}}
{{- end -}}
{{- with $sizes -}}
{{- $remedies = append $remedies (printf "tensorParallelSize: %d" (first .)) -}}
{{- end -}}
{{- $length := divf (mulf $fit.kvGiB 1073741824) .kvBytesPerToken | floor | int -}}
{{- if gt $length 0 -}}
{{- $remedies = append $remedies (printf "maxModelLen: %d or less" $length) -}}
{{- end -}}
{{- $remedies = append $remedies "an accelerator with more memory" -}}
{{- printf "weights %.1f + overhead %.1f + one sequence of %d tokens %.1f = %.1f GiB"
      $fit.weightsGiB $fit.overheadGiB (int .maxModelLen) $fit.kvGiBPerSequence $fit.needGiB -}}
{{- printf " do not fit %.1f GiB (%v GiB x %d %s x %v)."
      $fit.haveGiB .hardware.memoryGiB (int .tensorParallelSize) .accelerator .gpuMemoryUtilization -}}
{{- printf " Set %s." (join ", or " $remedies) -}}
{{- end -}}
{{- end -}}
