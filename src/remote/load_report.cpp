#include "remote/load_report.h"

#include <charconv>
#include <cmath>

namespace xgen::remote {
namespace {

// The value of one label in `{a="x",b="y"}`; null if it is not there. Escapes are left as they are: names and numbers
// have none.
std::optional<std::string_view> label(std::string_view labels, std::string_view name) {
  for (std::size_t at = labels.find(name); at != std::string_view::npos; at = labels.find(name, at + 1)) {
    const bool begins = at > 0 && (labels[at - 1] == '{' || labels[at - 1] == ',');
    const std::string_view rest = labels.substr(at + name.size());
    if (!begins || !rest.starts_with("=\"")) continue;
    const std::size_t end = rest.find('"', 2);
    if (end == std::string_view::npos) return std::nullopt;
    return rest.substr(2, end - 2);
  }
  return std::nullopt;
}

std::optional<double> number(std::string_view text) {
  double value = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  if (result.ec != std::errc() || !std::isfinite(value) || value < 0) return std::nullopt;
  return value;
}

}  // namespace

std::optional<inference::Load> read_load(std::string_view page, std::string_view name) {
  inference::Load mine;
  inference::Load all;
  bool found = false;
  bool found_mine = false;
  while (!page.empty()) {
    const std::size_t end = page.find('\n');
    std::string_view line = page.substr(0, end);
    page.remove_prefix(end == std::string_view::npos ? page.size() : end + 1);
    if (!line.starts_with("vllm:")) continue;
    const std::size_t brace = line.find('{');
    const std::size_t close = line.rfind('}');
    const bool labelled = brace != std::string_view::npos && close != std::string_view::npos && close > brace;
    const std::string_view metric = line.substr(0, labelled ? brace : line.find(' '));
    const std::string_view labels = labelled ? line.substr(brace, close - brace + 1) : std::string_view();
    std::string_view rest = line.substr(labelled ? close + 1 : metric.size());
    if (rest.starts_with(' ')) rest.remove_prefix(1);
    const auto value = number(rest.substr(0, rest.find(' ')));
    if (!value) continue;
    const bool is_mine = label(labels, "model_name") == name;
    const auto add = [&](double inference::Load::*field, double amount) {
      all.*field += amount;
      if (is_mine) mine.*field += amount;
    };
    if (metric == "vllm:num_requests_running" || metric == "vllm:num_requests_waiting") {
      found = true;
      found_mine = found_mine || is_mine;
      add(metric.ends_with("running") ? &inference::Load::running : &inference::Load::waiting, *value);
    } else if (metric == "vllm:cache_config_info") {
      const auto size = label(labels, "block_size");
      const auto blocks = label(labels, "num_gpu_blocks");
      if (size && blocks) add(&inference::Load::kv_tokens, number(*size).value_or(0) * number(*blocks).value_or(0));
    }
  }
  if (!found) return std::nullopt;
  // vLLM's page is of one model, whose cache_config_info does not name it.
  if (found_mine && mine.kv_tokens == 0 && mine.running == all.running && mine.waiting == all.waiting) return all;
  return found_mine ? mine : all;
}

}  // namespace xgen::remote
