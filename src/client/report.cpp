#include "client/report.h"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>

#include "base/json_text.h"

namespace xgen::client {
namespace {

// Above these the figures say more of this program than of the server.
constexpr double kBusy = 0.85;       // of a core, by one thread
constexpr double kLate = 0.005;      // seconds, at the 99th percentile
constexpr double kCached = 0.1;      // of the input, beyond what the requests share
constexpr double kFewCounted = 100;  // requests, for a 99th percentile

[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...) {
  va_list arguments;
  va_start(arguments, pattern);
  char text[512];
  std::vsnprintf(text, sizeof(text), pattern, arguments);
  va_end(arguments);
  return text;
}

std::string rate_text(double rate) { return format(rate >= 100 ? "%.0f/s" : rate >= 10 ? "%.1f/s" : "%.2f/s", rate); }

std::string seconds_text(double seconds) { return format(seconds < 10 ? "%.2f s" : "%.1f s", seconds); }

const char* arrivals_text(Arrivals::Kind kind) {
  return kind == Arrivals::Kind::poisson ? "poisson" : kind == Arrivals::Kind::constant ? "constant" : "trace";
}

double offered(const Figures& figures) { return static_cast<double>(figures.counted) / figures.seconds; }

std::vector<std::string> warnings(const Subject& subject, const Figures& figures) {
  std::vector<std::string> out;
  if (figures.receiver > kBusy)
    out.push_back(format("a thread that receives used %.0f%% of a core: the server may be faster (--threads)",
                         100 * figures.receiver));
  if (subject.load.open && figures.sender > kBusy)
    out.push_back(
        format("the thread that sends used %.0f%% of a core: it cannot send much faster", 100 * figures.sender));
  if (subject.load.open && figures.late.p99 > kLate)
    out.push_back("requests were sent late (" + time_text(figures.late.p99) +
                  " at p99): this machine could not keep up, and latencies hold that time");
  const RequestOptions& requests = subject.requests;
  const double shared = subject.cost.overhead + (requests.prefixes > 0 ? requests.prefix_tokens : 0);
  if (figures.input.mean > 0 && figures.cached > shared / figures.input.mean + kCached)
    out.push_back(
        format("%.0f%% of the input came from the server's prefix cache, more than the requests share: it has seen "
               "this --seed before",
               100 * figures.cached));
  if (static_cast<double>(figures.succeeded) < kFewCounted && figures.succeeded > 0)
    out.push_back(
        format("%llu requests are too few for a 99th percentile", static_cast<unsigned long long>(figures.succeeded)));
  return out;
}

// "usage", "events" or "both": who counted the tokens.
const char* counted_by(const Figures& figures) {
  if (figures.with_usage == 0) return "events";
  return figures.with_usage == figures.succeeded ? "usage" : "both";
}

}  // namespace

std::string time_text(double seconds) {
  const double size = std::abs(seconds);
  if (size >= 99.95) return format("%.0f s", seconds);
  if (size >= 9.995) return format("%.1f s", seconds);
  if (size >= 0.9995) return format("%.2f s", seconds);
  if (size >= 0.09995) return format("%.0f ms", 1e3 * seconds);
  if (size >= 0.009995) return format("%.1f ms", 1e3 * seconds);
  if (size >= 0.0009995) return format("%.2f ms", 1e3 * seconds);
  return format("%.0f us", 1e6 * seconds);
}

std::string load_text(const Subject& subject) {
  const LoadOptions& load = subject.load;
  if (!load.open) return format("closed loop, %d at once", load.concurrency);
  if (load.arrivals == Arrivals::Kind::trace)
    return "open loop, " + plain(subject.trace) + (load.rate > 0 ? format(" brought to %g requests/s", load.rate) : "");
  return format("open loop, %g requests/s, %s", load.rate,
                load.arrivals == Arrivals::Kind::poisson ? "Poisson" : "evenly spaced");
}

std::string report_text(const Subject& subject, const LoadResult& result, const Figures& figures) {
  const RequestOptions& requests = subject.requests;
  std::string out =
      plain(subject.model) + " at " + subject.url + (requests.chat ? ", chat" : "") + " completions, streamed\n\n";
  const auto line = [&](const char* name, const std::string& text) { out += format("%-12s", name) + text + "\n"; };
  line("load", load_text(subject));
  std::string lengths = "input " + requests.input.text() + ", output " + requests.output.text() + " tokens" +
                        (requests.ignore_eos ? " (ignore_eos)" : "");
  if (requests.prefixes > 0)
    lengths += format(", %d shared prefix%s of %d tokens", requests.prefixes, requests.prefixes == 1 ? "" : "es",
                      requests.prefix_tokens);
  line("requests", lengths + format(", seed %llu", static_cast<unsigned long long>(requests.seed)));
  line("measured",
       seconds_text(figures.seconds) +
           (subject.load.warmup > 0 ? " after " + seconds_text(subject.load.warmup) + " of warm-up" : "") +
           format(": %llu requests, %llu succeeded, %llu failed", static_cast<unsigned long long>(figures.counted),
                  static_cast<unsigned long long>(figures.succeeded),
                  static_cast<unsigned long long>(figures.counted - figures.succeeded)));
  if (!result.ended.empty()) line("", "ended early: " + result.ended);
  if (result.shortened > 0)
    line("", format("%llu requests were shortened to the model's context of %d tokens",
                    static_cast<unsigned long long>(result.shortened), requests.max_len));
  if (figures.succeeded > 0) {
    out += format("\n%-12s%10s%10s%10s%10s%10s%10s\n", "", "mean", "p50", "p90", "p95", "p99", "max");
    const auto row = [&](const char* name, const Summary& of) {
      if (of.count == 0) return;
      out += format("%-12s", name);
      for (const double value : {of.mean, of.p50, of.p90, of.p95, of.p99, of.max})
        out += format("%10s", time_text(value).c_str());
      out += '\n';
    };
    row("TTFT", figures.ttft);
    row("ITL", figures.itl);
    row("TPOT", figures.tpot);
    row("end to end", figures.e2e);
    out += '\n';
    line("throughput", rate_text(figures.requests_per_second) + " requests, " + rate_text(figures.output_per_second) +
                           " output tokens, " + rate_text(figures.input_per_second) + " input tokens; " +
                           format("%.1f requests under way", figures.running) +
                           (subject.load.open ? ", " + rate_text(offered(figures)) + " sent" : ""));
    if (!subject.slo.empty())
      line("goodput",
           rate_text(figures.good_per_second) + " requests, " +
               format("%.1f%%", 100 * static_cast<double>(figures.good) / static_cast<double>(figures.counted)) +
               ", within " + subject.slo.text());
    std::string tokens = figures.with_usage == 0 ? "counted by events, as the server does not say"
                         : figures.with_usage == figures.succeeded
                             ? "counted by the server (usage)"
                             : format("counted by the server (usage) for %llu requests, by events for the others",
                                      static_cast<unsigned long long>(figures.with_usage));
    tokens += figures.with_usage == 0 ? format("; input meant %.0f", figures.asked_input)
                                      : format("; input %.0f in the mean (meant %.0f, %.0f%% cached)",
                                               figures.input.mean, figures.asked_input, 100 * figures.cached);
    line("tokens", tokens + format(", output %.1f (asked %.0f)", figures.output.mean, figures.asked_output));
    if (!subject.cost.measured) line("", "input lengths are in words, as the server does not count them");
  }
  line("generator", (subject.load.open ? "sent " + time_text(figures.late.p50) + " late at p50, " +
                                             time_text(figures.late.p99) + " at p99; "
                                       : std::string()) +
                        format("%.0f%% of a core", 100 * figures.cores));
  if (!figures.faults.empty()) out += "\n";
  for (const auto& [kind, count] : figures.faults) {
    const auto said = result.messages.find(kind);
    line("failed", format("%llu ", static_cast<unsigned long long>(count)) + kind +
                       (said == result.messages.end() ? "" : ", the first: " + plain(said->second)));
  }
  for (const std::string& each : warnings(subject, figures)) out += "\nwarning: " + each + "\n";
  return out;
}

std::string report_json(const Subject& subject, const LoadResult& result, const Figures& figures) {
  std::string out = "{";
  std::string indent = "\n  ";
  bool first = true;
  const auto key = [&](const char* name) {
    if (!first) out += ',';
    first = false;
    out += indent + "\"" + name + "\": ";
  };
  const auto text = [&](const char* name, std::string_view value) {
    key(name);
    append_json_string(out, value);
  };
  const auto number = [&](const char* name, double value) {
    key(name);
    out += std::isfinite(value) ? format("%.9g", value) : "null";
  };
  const auto flag = [&](const char* name, bool value) {
    key(name);
    out += value ? "true" : "false";
  };
  const auto open = [&](const char* name) {
    key(name);
    out += '{';
    indent += "  ";
    first = true;
  };
  const auto close = [&] {
    indent.resize(indent.size() - 2);
    out += indent + "}";
    first = false;
  };
  const auto summary = [&](const char* name, const Summary& of, double unit) {
    key(name);
    out += format(
        "{\"count\": %zu, \"mean\": %.6g, \"p50\": %.6g, \"p90\": %.6g, \"p95\": %.6g, \"p99\": %.6g, \"max\": %.6g}",
        of.count, of.mean * unit, of.p50 * unit, of.p90 * unit, of.p95 * unit, of.p99 * unit, of.max * unit);
  };
  const RequestOptions& requests = subject.requests;
  const LoadOptions& load = subject.load;
  number("schema", 1);
  text("program", "xgen-model " + subject.version);
  text("url", subject.url);
  text("model", subject.model);
  text("endpoint", requests.chat ? "chat" : "completions");
  open("load");
  text("loop", load.open ? "open" : "closed");
  if (load.open) {
    text("arrivals", arrivals_text(load.arrivals));
    if (load.rate > 0) number("rate", load.rate);
  } else {
    number("concurrency", load.concurrency);
  }
  text("input", requests.input.text());
  text("output", requests.output.text());
  if (!subject.trace.empty()) text("trace", subject.trace);
  number("prefixes", requests.prefixes);
  number("prefix_tokens", requests.prefixes > 0 ? requests.prefix_tokens : 0);
  flag("ignore_eos", requests.ignore_eos);
  key("seed");
  out += std::to_string(requests.seed);
  number("warmup_s", load.warmup);
  if (load.requests) number("requests", static_cast<double>(*load.requests));
  if (load.duration) number("duration_s", *load.duration);
  number("timeout_s", std::chrono::duration<double>(load.api.timeout).count());
  close();
  number("measured_s", figures.seconds);
  if (!result.ended.empty()) text("ended_early", result.ended);
  open("requests");
  number("counted", static_cast<double>(figures.counted));
  number("succeeded", static_cast<double>(figures.succeeded));
  number("failed", static_cast<double>(figures.counted - figures.succeeded));
  number("shortened", static_cast<double>(result.shortened));
  close();
  open("errors");
  for (const auto& [kind, count] : figures.faults) {
    open(kind.c_str());
    number("count", static_cast<double>(count));
    const auto said = result.messages.find(kind);
    text("first", said == result.messages.end() ? std::string() : said->second);
    close();
  }
  close();
  summary("ttft_ms", figures.ttft, 1e3);
  summary("itl_ms", figures.itl, 1e3);
  summary("tpot_ms", figures.tpot, 1e3);
  summary("e2e_ms", figures.e2e, 1e3);
  open("throughput");
  number("requests_per_s", figures.requests_per_second);
  number("output_tokens_per_s", figures.output_per_second);
  number("input_tokens_per_s", figures.input_per_second);
  number("sent_per_s", offered(figures));
  number("running", figures.running);
  close();
  if (!subject.slo.empty()) {
    open("goodput");
    const auto limit = [&](const char* name, const std::optional<double>& value) {
      if (value) number(name, *value * 1000);
    };
    limit("ttft_ms", subject.slo.ttft);
    limit("itl_ms", subject.slo.itl);
    limit("tpot_ms", subject.slo.tpot);
    limit("e2e_ms", subject.slo.e2e);
    number("good", static_cast<double>(figures.good));
    number("share",
           figures.counted == 0 ? 0 : static_cast<double>(figures.good) / static_cast<double>(figures.counted));
    number("requests_per_s", figures.good_per_second);
    close();
  }
  open("tokens");
  text("counted_by", counted_by(figures));
  number("with_usage", static_cast<double>(figures.with_usage));
  flag("input_measured", subject.cost.measured);
  summary("input", figures.input, 1);
  summary("output", figures.output, 1);
  number("input_meant", figures.asked_input);
  number("output_asked", figures.asked_output);
  number("cached_share", figures.cached);
  close();
  open("generator");
  number("threads", load.threads);
  number("cores", figures.cores);
  number("receiver", figures.receiver);
  number("sender", figures.sender);
  summary("late_ms", figures.late, 1e3);
  close();
  key("warnings");
  out += '[';
  const auto list = warnings(subject, figures);
  for (std::size_t i = 0; i < list.size(); ++i) {
    if (i > 0) out += ", ";
    append_json_string(out, list[i]);
  }
  out += ']';
  open("timeline");
  number("step_s", figures.step);
  const auto series = [&](const char* name, const auto& value) {
    key(name);
    out += '[';
    for (std::size_t i = 0; i < figures.line.size(); ++i)
      out += format("%s%.6g", i > 0 ? ", " : "", value(figures.line[i]));
    out += ']';
  };
  series("output_tokens_per_s", [](const Figures::Moment& at) { return at.output_per_second; });
  series("running", [](const Figures::Moment& at) { return at.running; });
  series("failed", [](const Figures::Moment& at) { return static_cast<double>(at.failed); });
  close();
  return out + "\n}\n";
}

}  // namespace xgen::client
