// The picture of a report: three plots in SVG 1.1, without scripts, fonts or anything else from elsewhere.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "base/utf8.h"
#include "client/report.h"

namespace xgen::client {
namespace {

constexpr double kWidth = 960, kHeight = 660;
constexpr const char* kInk = "#1f2933";
constexpr const char* kPale = "#d9dee4";
constexpr const char* kFirst = "#1769aa";
constexpr const char* kSecond = "#c2571a";
constexpr const char* kBad = "#b3261e";
constexpr std::size_t kPoints = 300;  // of a curve

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : replace_invalid_utf8(text)) {
    if (c == '<')
      out += "&lt;";
    else if (c == '&')
      out += "&amp;";
    else if (c == '"')
      out += "&quot;";
    else
      out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;  // XML has no other control characters
  }
  return out;
}

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f", value);
  return text;
}

// 1, 2 or 5 times a power of ten, not below `least`.
double round_up(double least) {
  const double power = std::pow(10, std::floor(std::log10(least)));
  for (const double each : {1.0, 2.0, 5.0})
    if (each * power >= least * (1 - 1e-9)) return each * power;
  return 10 * power;
}

std::string count_text(double value) {
  char text[32];
  std::snprintf(text, sizeof(text),
                value >= 1e6      ? "%gM"
                : value >= 10'000 ? "%gk"
                                  : "%g",
                value >= 1e6      ? value / 1e6
                : value >= 10'000 ? value / 1e3
                                  : value);
  return text;
}

// Of round values.
std::string tick_text(double seconds) {
  if (seconds == 0) return "0";
  char text[32];
  const double scale = seconds >= 0.9999 ? 1 : seconds >= 0.9999e-3 ? 1e3 : 1e6;
  std::snprintf(text, sizeof(text), "%.4g %s", seconds * scale, scale == 1 ? "s" : scale == 1e3 ? "ms" : "us");
  return text;
}

// One plot's place, and what its corners stand for.
struct Panel {
  double left, top, width, height;
  double x_low, x_high, y_high;  // y begins with 0
  bool logarithmic = false;      // x

  double x(double value) const {
    const double share =
        logarithmic ? std::log(value / x_low) / std::log(x_high / x_low) : (value - x_low) / (x_high - x_low);
    return left + width * std::clamp(share, 0.0, 1.0);
  }
  double y(double value) const { return top + height * (1 - std::clamp(value / y_high, 0.0, 1.0)); }
};

class Drawing {
 public:
  void line(double x1, double y1, double x2, double y2, const char* colour, const char* more = "") {
    out_ += "<line x1=\"" + number(x1) + "\" y1=\"" + number(y1) + "\" x2=\"" + number(x2) + "\" y2=\"" + number(y2) +
            "\" stroke=\"" + colour + "\"" + more + "/>\n";
  }
  void text(double x, double y, std::string_view what, const char* anchor = "start", const char* more = "") {
    out_ += "<text x=\"" + number(x) + "\" y=\"" + number(y) + "\" text-anchor=\"" + anchor + "\"" + more + ">" +
            escaped(what) + "</text>\n";
  }
  void curve(const std::vector<std::pair<double, double>>& points, const char* colour) {
    out_ += std::string("<polyline fill=\"none\" stroke-width=\"1.6\" stroke-linejoin=\"round\" stroke=\"") + colour +
            "\" points=\"";
    for (const auto& [x, y] : points) out_ += number(x) + "," + number(y) + " ";
    out_ += "\"/>\n";
  }
  void frame(const Panel& at, std::string_view title) {
    line(at.left, at.top + at.height, at.left + at.width, at.top + at.height, kInk);
    text(at.left, at.top - 12, title, "start", " font-weight=\"bold\"");
  }
  void level(const Panel& at, double value, std::string_view label) {
    if (value > 0) line(at.left, at.y(value), at.left + at.width, at.y(value), kPale);
    text(at.left - 7, at.y(value) + 4, label, "end");
  }
  void tick(const Panel& at, double value, std::string_view label) {
    line(at.x(value), at.top + at.height, at.x(value), at.top + at.height + 4, kInk);
    text(at.x(value), at.top + at.height + 18, label, "middle");
  }
  std::string take() { return std::move(out_); }

 private:
  std::string out_;
};

// Share of the values up to each time.
void distribution(Drawing& draw, Panel at, std::string_view title, const std::vector<float>& sorted,
                  const Summary& summary, const std::optional<double>& limit) {
  at.y_high = 1;
  at.x_low = 0;
  at.x_high = 1;
  draw.frame(at, title);
  for (const int percent : {0, 25, 50, 75, 100}) draw.level(at, percent / 100.0, std::to_string(percent) + "%");
  if (sorted.empty()) return draw.text(at.left + at.width / 2, at.top + at.height / 2, "no values", "middle");
  // Events that were read together have next to no time between them; a logarithmic axis begins above those.
  const double least = std::max({static_cast<double>(percentile(sorted, 0.02)), 1e-5, summary.p50 / 1000});
  const double most = std::max({summary.max, limit.value_or(0), least * 1.2});
  at.logarithmic = most / least > 8;
  if (at.logarithmic) {
    at.x_low = std::pow(10, std::floor(std::log10(least)));
    for (const double each : {2.0, 5.0})
      if (least >= each * std::pow(10, std::floor(std::log10(least))))
        at.x_low = each * std::pow(10, std::floor(std::log10(least)));
    at.x_high = std::max(round_up(most), at.x_low * 10);
    const bool few = at.x_high / at.x_low <= 250;
    for (double power = std::pow(10, std::floor(std::log10(at.x_low) + 1e-9)); power <= at.x_high * 1.001; power *= 10)
      for (const double each : {1.0, 2.0, 5.0}) {
        const double value = each * power;
        if (value < at.x_low * 0.999 || value > at.x_high * 1.001) continue;
        if (each == 1.0 || few) draw.tick(at, value, tick_text(value));
      }
  } else {
    const double step = round_up((most - least * 0.9) / 5);
    at.x_low = std::floor(least * 0.95 / step) * step;
    at.x_high = std::max(std::ceil(most / step) * step, at.x_low + step);
    for (double value = at.x_low; value <= at.x_high + step / 2; value += step) draw.tick(at, value, tick_text(value));
  }
  if (limit) {
    draw.line(at.x(*limit), at.top, at.x(*limit), at.top + at.height, kBad, " stroke-dasharray=\"2 3\"");
    draw.text(at.x(*limit) - 4, at.top + at.height - 8, "SLO", "end", " fill=\"#b3261e\"");
  }
  std::vector<std::pair<double, double>> points{{at.left, at.y(0)}};
  for (std::size_t i = 0; i <= kPoints; ++i) {
    const double share = static_cast<double>(i) / kPoints;
    const auto value = static_cast<double>(i == 0 ? sorted.front() : percentile(sorted, share));
    points.emplace_back(at.x(std::max(value, at.x_low)), at.y(share));
  }
  points.emplace_back(at.left + at.width, at.y(1));
  draw.curve(points, kFirst);
  const std::array<std::pair<const char*, double>, 3> marks{
      {{"p50", summary.p50}, {"p90", summary.p90}, {"p99", summary.p99}}};
  const double shares[] = {0.5, 0.9, 0.99};
  std::string said;
  for (std::size_t i = 0; i < marks.size(); ++i) {
    const double x = at.x(std::max(marks[i].second, at.x_low));
    draw.line(x, at.y(shares[i]), x, at.top + at.height, kFirst, " stroke-dasharray=\"3 3\" stroke-opacity=\"0.6\"");
    said += std::string(i > 0 ? "   " : "") + marks[i].first + " " + time_text(marks[i].second);
  }
  draw.text(at.left + at.width, at.top - 12, said, "end");
}

void time_line(Drawing& draw, Panel at, const Figures& figures, double begin, double end) {
  const double total = figures.step * static_cast<double>(figures.line.size());
  double most = 0, most_running = 0;
  for (const auto& each : figures.line) {
    most = std::max(most, each.output_per_second);
    most_running = std::max(most_running, each.running);
  }
  at.x_low = 0;
  at.x_high = total;
  const double level = round_up(std::max(most, 1.0) / 4);
  at.y_high = level * std::max(1.0, std::ceil(most / level));
  Panel other = at;
  const double other_level = round_up(std::max(most_running, 1.0) / 4);
  other.y_high = other_level * std::max(1.0, std::ceil(most_running / other_level));
  draw.frame(at, "Throughput over time");
  for (double value = 0; value <= at.y_high + level / 2; value += level) draw.level(at, value, count_text(value));
  for (double value = 0; value <= other.y_high + other_level / 2; value += other_level)
    draw.text(at.left + at.width + 7, other.y(value) + 4, count_text(value), "start", " fill=\"#c2571a\"");
  const double step = round_up(total / 8);
  for (double value = 0; value <= total; value += step) draw.tick(at, value, tick_text(value));
  for (const double edge : {begin, end})
    if (edge > total * 0.002 && edge < total * 0.995)
      draw.line(at.x(edge), at.top, at.x(edge), at.top + at.height, kInk, " stroke-dasharray=\"2 3\"");
  std::vector<std::pair<double, double>> tokens, running;
  for (std::size_t i = 0; i < figures.line.size(); ++i) {
    const double middle = at.x((static_cast<double>(i) + 0.5) * figures.step);
    tokens.emplace_back(middle, at.y(figures.line[i].output_per_second));
    running.emplace_back(middle, other.y(figures.line[i].running));
    if (figures.line[i].failed > 0)
      draw.line(middle, at.top + at.height - 10, middle, at.top + at.height, kBad, " stroke-width=\"3\"");
  }
  draw.curve(running, kSecond);
  draw.curve(tokens, kFirst);
  double x = at.left + 190;
  const auto legend = [&](const char* colour, const char* what, double width) {
    draw.line(x, at.top - 16, x + 18, at.top - 16, colour, " stroke-width=\"2.5\"");
    draw.text(x + 24, at.top - 12, what);
    x += width;
  };
  legend(kFirst, "output tokens/s (left)", 190);
  legend(kSecond, "requests under way (right)", 215);
  if (!figures.faults.empty()) legend(kBad, "failed requests", 130);
}

}  // namespace

std::string report_svg(const Subject& subject, const Figures& figures) {
  Drawing draw;
  draw.text(60, 32, subject.model + " at " + subject.url, "start", " font-size=\"17\" font-weight=\"bold\"");
  char counts[160];
  std::snprintf(counts, sizeof(counts), "; %.1f s, %llu of %llu requests succeeded, %s output tokens/s",
                figures.seconds, static_cast<unsigned long long>(figures.succeeded),
                static_cast<unsigned long long>(figures.counted),
                count_text(std::round(figures.output_per_second)).c_str());
  draw.text(60, 54,
            load_text(subject) + "; input " + subject.requests.input.text() + ", output " +
                subject.requests.output.text() + counts);
  distribution(draw, {60, 110, 385, 210}, "Time to first token", figures.ttfts, figures.ttft, subject.slo.ttft);
  distribution(draw, {520, 110, 385, 210}, "Gaps between tokens", figures.itls, figures.itl, subject.slo.itl);
  time_line(draw, {60, 400, 845, 210}, figures, subject.load.warmup, subject.load.warmup + figures.seconds);
  const std::string size = "width=\"" + number(kWidth) + "\" height=\"" + number(kHeight) + "\"";
  return "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" version=\"1.1\" " +
         size + " viewBox=\"0 0 " + number(kWidth) + " " + number(kHeight) +
         "\" font-family=\"DejaVu Sans, Arial, sans-serif\" font-size=\"12\" fill=\"" + kInk + "\">\n<rect " + size +
         " fill=\"#ffffff\"/>\n" + draw.take() + "</svg>\n";
}

}  // namespace xgen::client
