// Report: the figures of a load for people (text), for programs (JSON) and as a picture (SVG).
#pragma once

#include <string>

#include "client/figures.h"
#include "client/load.h"

namespace xgen::client {

// What was measured.
struct Subject {
  std::string version;  // of this program
  std::string url;
  std::string model;
  LoadOptions load;
  RequestOptions requests;
  WordCost cost;
  std::string trace;  // its file
  Slo slo;
};

std::string report_text(const Subject& subject, const LoadResult& result, const Figures& figures);
// docs/bench-report.schema.json describes it.
std::string report_json(const Subject& subject, const LoadResult& result, const Figures& figures);
// The distributions of TTFT and of the gaps between tokens, and the throughput over time.
std::string report_svg(const Subject& subject, const Figures& figures);

// "closed loop, 8 at once"
std::string load_text(const Subject& subject);
// Three digits and a unit: "12.3 ms".
std::string time_text(double seconds);

}  // namespace xgen::client
