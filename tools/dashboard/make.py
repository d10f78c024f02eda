#!/usr/bin/env python3
"""Prints the Grafana dashboard: tools/dashboard/make.py > deploy/monitoring/grafana-dashboard.json"""
import json

MODEL = 'model_name=~"$model",instance=~"$instance"'
INSTANCE = 'instance=~"$instance"'
QUANTILES = (0.5, 0.95, 0.99)


def rate(metric, by="model_name", match=MODEL):
    return f"sum by ({by}) (rate({metric}{{{match}}}[$__rate_interval]))"


def quantiles(metric):
    """Of a histogram over all instances, a line for each quantile."""
    inner = f"sum by (le) (rate({metric}_bucket{{{MODEL}}}[$__rate_interval]))"
    return [(f"histogram_quantile({q}, {inner})", f"p{q * 100:g}") for q in QUANTILES]


def share(part, whole, match=MODEL, by="model_name"):
    return f"{rate(part, by, match)} / {rate(whole, by, match)}"


# Rows of (title, unit, [(expression, legend)], options).
ROWS = [
    ("Requests", [
        ("Running and waiting", "short", [
            (f"sum by (model_name) (vllm:num_requests_running{{{MODEL}}})", "{{model_name}} running"),
            (f"sum by (model_name) (vllm:num_requests_waiting{{{MODEL}}})", "{{model_name}} waiting")]),
        ("Finished, by reason", "reqps", [(rate("vllm:request_success_total", "finished_reason"), "{{finished_reason}}")]),
        ("HTTP answers, by status", "reqps", [(rate("xgen_http_responses_total", "status", INSTANCE), "{{status}}")]),
        ("Refused by a model (429)", "reqps", [
            (rate("vllm:admission_rejections_total", "model_name, reason"), "{{model_name}} {{reason}}")]),
    ]),
    ("Latency", [
        ("Time to first token", "s", quantiles("vllm:time_to_first_token_seconds")),
        ("Between two tokens", "s", quantiles("vllm:inter_token_latency_seconds")),
        ("Whole request", "s", quantiles("vllm:e2e_request_latency_seconds")),
        ("Where the time goes (mean)", "s", [
            (share(f"vllm:request_{phase}_time_seconds_sum", f"vllm:request_{phase}_time_seconds_count"),
             f"{{{{model_name}}}} {phase}") for phase in ("queue", "prefill", "decode")]),
    ]),
    ("Tokens", [
        ("Generated", "short", [(rate("vllm:generation_tokens_total"), "{{model_name}}")]),
        ("Prompts: computed and taken from the prefix cache", "short", [
            (f"{rate('vllm:prompt_tokens_total')} - {rate('vllm:prompt_tokens_cached_total')}", "{{model_name}} computed"),
            (rate("vllm:prompt_tokens_cached_total"), "{{model_name}} cached")]),
        ("Prefix cache: tokens found", "percentunit", [
            (share("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"), "{{model_name}}")]),
        ("Tokens of one engine step (mean)", "short", [
            (share("vllm:iteration_tokens_total_sum", "vllm:iteration_tokens_total_count"), "{{model_name}}")]),
    ]),
    ("Memory", [
        ("KV cache in use", "percentunit", [(f"max by (model_name) (vllm:kv_cache_usage_perc{{{MODEL}}})", "{{model_name}}")]),
        ("Sequences preempted", "short", [(rate("vllm:num_preemptions_total"), "{{model_name}}")]),
        ("The budget", "bytes", [
            (f"sum by (memory) (xgen_memory_budget_bytes{{{INSTANCE}}})", "{{memory}} budget"),
            (f"sum by (memory) (xgen_memory_reserved_bytes{{{INSTANCE}}})", "{{memory}} reserved"),
            (f"sum by (memory) (xgen_memory_borrowed_bytes{{{INSTANCE}}})", "{{memory}} borrowed"),
            (f"sum (process_resident_memory_bytes{{{INSTANCE}}})", "resident")]),
        ("Models", "bytes", [
            (f"sum by (model_name) (xgen_model_reserved_bytes{{{MODEL}}})", "{{model_name}} reserved"),
            (f"sum by (model_name) (xgen_model_borrowed_bytes{{{MODEL}}})", "{{model_name}} borrowed")]),
    ]),
    ("Models", [
        ("States", "short", [(f"sum by (model_name, state) (xgen_model_state{{{MODEL}}})", "{{model_name}} {{state}}")]),
        ("Loads, failures, evictions", "short", [
            (f"sum by (model_name) (increase(xgen_model_{what}_total{{{MODEL}}}[$__rate_interval]))",
             f"{{{{model_name}}}} {what}") for what in ("loads", "load_failures", "evictions")]),
        ("The last load", "s", [
            (f"max by (model_name, phase) (xgen_model_load_seconds{{{MODEL}}})", "{{model_name}} {{phase}}")]),
        ("Calls that went to another model", "reqps", [
            (rate("xgen_model_fallbacks_total", "model_name, target"), "{{model_name}} to {{target}}")]),
    ]),
    ("Remote engines", [
        ("Replicas that are well", "short", [
            (f"min by (model_name, replica) (xgen_replica_up{{{MODEL}}})", "{{model_name}} {{replica}}")]),
        ("Requests there", "short", [
            (f"sum by (replica) (xgen_replica_requests_in_flight{{{MODEL}}})", "{{replica}}")]),
        ("Failures", "reqps", [(rate("xgen_replica_failures_total", "replica"), "{{replica}}")]),
        ("Prompts sent where their beginning is", "percentunit", [
            (share("xgen_replica_matched_chunks_total", "xgen_replica_prompt_chunks_total"), "{{model_name}}")]),
    ]),
    ("Process", [
        ("CPU", "short", [(f"rate(process_cpu_seconds_total{{{INSTANCE}}}[$__rate_interval])", "{{instance}}")]),
        ("Connections and descriptors", "short", [
            (f"xgen_http_open_connections{{{INSTANCE}}}", "{{instance}} connections"),
            (f"process_open_fds{{{INSTANCE}}}", "{{instance}} descriptors")]),
        ("Requests, by route: p95", "s", [
            (f"histogram_quantile(0.95, sum by (le, route) (rate(xgen_http_request_duration_seconds_bucket{{{INSTANCE}}}"
             "[$__rate_interval])))", "{{route}}")]),
        ("Lost: spans and lines of the log", "short", [
            (rate("xgen_trace_spans_dropped_total", "instance", INSTANCE), "{{instance}} spans"),
            (rate("xgen_log_lines_lost_total", "instance", INSTANCE), "{{instance}} lines")]),
    ]),
]


def dashboard():
    panels, ids = [], 0
    y = 0
    for row, contents in ROWS:
        ids += 1
        panels.append({"id": ids, "type": "row", "title": row, "collapsed": False, "panels": [],
                       "gridPos": {"h": 1, "w": 24, "x": 0, "y": y}})
        y += 1
        for column, (title, unit, lines) in enumerate(contents):
            ids += 1
            panels.append({
                "id": ids, "type": "timeseries", "title": title, "datasource": {"type": "prometheus", "uid": "${datasource}"},
                "gridPos": {"h": 7, "w": 6, "x": column * 6, "y": y},
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
                "targets": [{"refId": chr(ord("A") + i), "expr": expression, "legendFormat": legend}
                            for i, (expression, legend) in enumerate(lines)],
            })
        y += 7
    variable = {"type": "query", "datasource": {"type": "prometheus", "uid": "${datasource}"}, "includeAll": True,
                "multi": True, "refresh": 2, "allValue": ".*", "current": {"text": "All", "value": "$__all"}}
    return {
        "title": "xgen-model", "uid": "xgen-model", "tags": ["xgen", "llm"], "schemaVersion": 39, "version": 1,
        "editable": True, "refresh": "10s", "time": {"from": "now-1h", "to": "now"}, "timezone": "browser",
        "templating": {"list": [
            {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
            {"name": "instance", "label": "Instance", "query": "label_values(xgen_build_info, instance)", **variable},
            {"name": "model", "label": "Model",
             "query": 'label_values(xgen_model_state{instance=~"$instance"}, model_name)', **variable},
        ]},
        "panels": panels,
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=1))
