#include "client/figures.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "base/units.h"

namespace xgen::client {
namespace {

constexpr std::size_t kMoments = 120;

// Adds `amount` to the pieces that the time from `from` to `to` crosses, by their share of it.
void spread(std::vector<Figures::Moment>& line, double step, double from, double to) {
  for (auto i = static_cast<std::size_t>(std::max(0.0, from / step)); i < line.size(); ++i) {
    const double begin = static_cast<double>(i) * step;
    if (begin >= to) break;
    line[i].running += (std::min(to, begin + step) - std::max(from, begin)) / step;
  }
}

}  // namespace

float percentile(const std::vector<float>& sorted, double share) {
  if (sorted.empty()) return 0;
  // A share that is meant to be whole may miss it by rounding.
  const double rank = std::ceil(share * static_cast<double>(sorted.size()) - 1e-9);
  return sorted[static_cast<std::size_t>(std::clamp(rank, 1.0, static_cast<double>(sorted.size()))) - 1];
}

Summary summarize(std::vector<float>& values) {
  std::sort(values.begin(), values.end());
  Summary out;
  out.count = values.size();
  if (values.empty()) return out;
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value);
  out.mean = sum / static_cast<double>(values.size());
  out.p50 = static_cast<double>(percentile(values, 0.5));
  out.p90 = static_cast<double>(percentile(values, 0.9));
  out.p95 = static_cast<double>(percentile(values, 0.95));
  out.p99 = static_cast<double>(percentile(values, 0.99));
  out.max = static_cast<double>(values.back());
  return out;
}

double ttft_of(const Record& record) { return record.first - record.planned; }
double e2e_of(const Record& record) { return record.end - record.planned; }
std::optional<double> tpot_of(const Record& record) {
  if (record.events < 2 || record.tokens() < 2) return std::nullopt;
  return (record.last - record.first) / (record.tokens() - 1);
}

bool Slo::kept_by(const Record& record) const {
  if (record.fault != Fault::none) return false;
  if (ttft && (record.events == 0 || ttft_of(record) > *ttft)) return false;
  if (itl && std::any_of(record.gaps.begin(), record.gaps.end(),
                         [this](float gap) { return static_cast<double>(gap) > *itl; }))
    return false;
  if (const auto mean = tpot_of(record); tpot && mean && *mean > *tpot) return false;
  return !e2e || e2e_of(record) <= *e2e;
}

std::string Slo::text() const {
  std::string out;
  const auto add = [&](const char* name, const std::optional<double>& limit) {
    if (!limit) return;
    char text[64];
    std::snprintf(text, sizeof(text), "%s%s %g ms", out.empty() ? "" : ", ", name, *limit * 1000);
    out += text;
  };
  add("ttft", ttft);
  add("itl", itl);
  add("tpot", tpot);
  add("e2e", e2e);
  return out;
}

Result<Slo> parse_slo(std::string_view text) {
  const auto fault = [](std::string_view part, const std::string& why) {
    return make_error(ErrorCode::invalid_argument, "'" + std::string(part) + "': " + why);
  };
  Slo slo;
  for (;;) {
    const std::size_t comma = text.find(',');
    const std::string_view part = text.substr(0, comma);
    const std::size_t equals = part.find('=');
    const std::string_view name = part.substr(0, equals);
    std::optional<double>* const limit = name == "ttft"   ? &slo.ttft
                                         : name == "itl"  ? &slo.itl
                                         : name == "tpot" ? &slo.tpot
                                         : name == "e2e"  ? &slo.e2e
                                                          : nullptr;
    if (limit == nullptr || equals == std::string_view::npos)
      return fault(part, "expected ttft=, itl=, tpot= or e2e= and a time, as in ttft=200ms,itl=50ms");
    const std::string_view value = part.substr(equals + 1);
    if (value.empty() || (value.back() >= '0' && value.back() <= '9'))
      return fault(part, "the time needs a unit, as in 200ms or 2s");
    const auto time = parse_duration(value);
    if (!time) return fault(part, time.error().message);
    if (time->count() == 0) return fault(part, "expected a time of at least 1ms");
    *limit = static_cast<double>(time->count()) / 1000;
    if (comma == std::string_view::npos) return slo;
    text.remove_prefix(comma + 1);
  }
}

Figures figures_of(const LoadResult& result, const Slo& slo) {
  Figures out;
  out.seconds = std::max(result.end - result.begin, 1e-9);
  const auto inside = [&](double at) { return at >= result.begin && at <= result.end; };
  double last = result.end;
  std::size_t gaps = 0;
  for (const Record& record : result.records) {
    last = std::max(last, record.end);
    gaps += record.counted && record.fault == Fault::none ? record.gaps.size() : 0;
  }
  out.itls.reserve(gaps);
  out.step = std::max(last / static_cast<double>(kMoments), 1e-3);
  out.line.resize(static_cast<std::size_t>(std::ceil(last / out.step)) + 1);

  std::vector<float> tpots, e2es, late, inputs, outputs;
  double output_tokens = 0, input_tokens = 0, running = 0, cached = 0, prompts = 0;
  const auto moment = [&](double at) -> Figures::Moment& {
    return out.line[std::min(out.line.size() - 1, static_cast<std::size_t>(std::max(0.0, at / out.step)))];
  };
  for (const Record& record : result.records) {
    const bool good = record.fault == Fault::none;
    spread(out.line, out.step, record.sent, record.end);
    running += std::max(0.0, std::min(record.end, result.end) - std::max(record.sent, result.begin));
    if (!good) ++moment(record.end).failed;
    if (good) {
      if (inside(record.end)) {
        out.requests_per_second += 1;
        if (slo.kept_by(record)) out.good_per_second += 1;
      }
      if (record.events > 0 && inside(record.first))
        input_tokens += record.has_usage ? record.usage.prompt_tokens : record.input;
      // Every event has an equal part of the answer's tokens.
      const double each = record.events > 0 ? static_cast<double>(record.tokens()) / record.events : 0;
      double at = record.first;
      for (int i = 0; i < record.events; ++i) {
        if (i > 0) at += static_cast<double>(record.gaps[static_cast<std::size_t>(i) - 1]);
        if (inside(at)) output_tokens += each;
        moment(at).output_per_second += each / out.step;
      }
    }
    if (!record.counted) continue;
    ++out.counted;
    if (record.fault != Fault::not_sent) late.push_back(static_cast<float>(record.sent - record.planned));
    if (!good) {
      ++out.faults[fault_text(record)];
      continue;
    }
    ++out.succeeded;
    if (slo.kept_by(record)) ++out.good;
    if (record.events > 0) out.ttfts.push_back(static_cast<float>(ttft_of(record)));
    if (const auto mean = tpot_of(record)) tpots.push_back(static_cast<float>(*mean));
    e2es.push_back(static_cast<float>(e2e_of(record)));
    out.itls.insert(out.itls.end(), record.gaps.begin(), record.gaps.end());
    outputs.push_back(static_cast<float>(record.tokens()));
    out.asked_input += record.input;
    out.asked_output += record.output;
    if (record.has_usage) {
      ++out.with_usage;
      inputs.push_back(static_cast<float>(record.usage.prompt_tokens));
      cached += record.usage.cached_tokens;
      prompts += record.usage.prompt_tokens;
    }
  }
  out.ttft = summarize(out.ttfts);
  out.itl = summarize(out.itls);
  out.tpot = summarize(tpots);
  out.e2e = summarize(e2es);
  out.late = summarize(late);
  out.input = summarize(inputs);
  out.output = summarize(outputs);
  const auto succeeded = static_cast<double>(std::max<std::uint64_t>(out.succeeded, 1));
  out.asked_input /= succeeded;
  out.asked_output /= succeeded;
  out.cached = prompts > 0 ? cached / prompts : 0;
  out.requests_per_second /= out.seconds;
  out.good_per_second /= out.seconds;
  out.output_per_second = output_tokens / out.seconds;
  out.input_per_second = input_tokens / out.seconds;
  out.running = running / out.seconds;
  out.cores = result.cpu / out.seconds;
  out.receiver = result.receiver / out.seconds;
  out.sender = result.sender / out.seconds;
  return out;
}

}  // namespace xgen::client
