#include "import/yaml.h"

#include <yaml-cpp/eventhandler.h>

#include <algorithm>
#include <optional>
#include <set>
#include <sstream>

#include "base/utf8.h"

namespace xgen::importer {
namespace {

constexpr std::size_t kMaxFileBytes = std::size_t{1} << 20;
constexpr std::size_t kMaxDocuments = 256;
constexpr std::size_t kMaxNodes = 100'000;  // aliases counted as often as they are used
constexpr int kMaxMerges = 16;              // of `<<` in `<<`

struct Ignore final : YAML::EventHandler {
  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
  void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
  void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t, const std::string&) override {}
  void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t, YAML::EmitterStyle::value) override {}
  void OnSequenceEnd() override {}
  void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t, YAML::EmitterStyle::value) override {}
  void OnMapEnd() override {}
};

Error fault(const std::string& place, const std::string& what) {
  return make_error(ErrorCode::invalid_argument, place + ": " + what);
}

// The parser's words, where they would not help, as what is wrong.
std::string what_of(const YAML::Exception& error) {
  const std::pair<std::string_view, std::string_view> words[] = {
      {YAML::ErrorMsg::MAP_VALUE, "a ':' where no key can be: look at the indentation and the quotes"},
      {YAML::ErrorMsg::END_OF_MAP, "indented unlike the keys before it"},
      {YAML::ErrorMsg::END_OF_SEQ, "indented unlike the list before it"},
      {YAML::ErrorMsg::BAD_FILE, "nested too deeply"},
  };
  for (const auto& [theirs, ours] : words)
    if (error.msg == theirs) return std::string(ours);
  return error.msg;
}

std::size_t count_nodes(const YAML::Node& node, std::size_t so_far) {
  if (++so_far > kMaxNodes) return so_far;
  for (const auto& each : node) {
    so_far = node.IsMap() ? count_nodes(each.second, count_nodes(each.first, so_far)) : count_nodes(each, so_far);
    if (so_far > kMaxNodes) break;
  }
  return so_far;
}

// A key that stands twice would be dropped in silence.
std::optional<Error> repeated_key(const Document& document, const YAML::Node& node) {
  std::set<std::string> seen;
  for (const auto& each : node) {
    const YAML::Node& value = node.IsMap() ? each.second : each;
    if (node.IsMap() && !each.first.IsScalar()) return fault(document.place(each.first), "expected a key");
    if (node.IsMap() && each.first.IsScalar() && !seen.insert(each.first.Scalar()).second)
      return fault(document.place(each.first), "the key '" + each.first.Scalar().substr(0, 100) + "' is given twice");
    if (auto found = repeated_key(document, value)) return found;
  }
  return {};
}

void append_entries(std::vector<KeyValue>& out, std::set<std::string>& seen, const YAML::Node& map, int depth) {
  if (!map.IsMap() || depth > kMaxMerges) return;
  for (const auto& each : map)
    if (each.first.IsScalar() && each.first.Scalar() != "<<" && seen.insert(each.first.Scalar()).second)
      out.push_back({each.first.Scalar(), each.first, each.second});
  for (const auto& each : map) {
    if (!each.first.IsScalar() || each.first.Scalar() != "<<") continue;
    if (each.second.IsSequence())
      for (const auto& one : each.second) append_entries(out, seen, one, depth + 1);
    else
      append_entries(out, seen, each.second, depth + 1);
  }
}

}  // namespace

Result<std::vector<Document>> read_documents(std::string_view text, const std::string& file, int first_line) {
  if (text.size() > kMaxFileBytes) return fault(file, "larger than 1 MiB");
  if (!is_valid_utf8(text) || text.find('\0') != std::string_view::npos) return fault(file, "no text in UTF-8");
  std::vector<Document> documents;
  // yaml-cpp's own way from one document to the next does not always end.
  for (std::size_t begin = 0; begin <= text.size();) {
    std::size_t end = begin;
    for (;;) {
      end = text.find('\n', end);
      if (end == std::string_view::npos) break;
      const std::string_view rest = text.substr(++end);
      if (rest.starts_with("---") &&
          (rest.size() == 3 || std::string_view(" \t\r\n").find(rest[3]) != std::string_view::npos))
        break;
    }
    const std::string piece(text.substr(begin, end == std::string_view::npos ? end : end - begin));
    Document document;
    document.file = file;
    document.first_line = first_line + static_cast<int>(std::count(
                                           text.begin(), text.begin() + static_cast<std::ptrdiff_t>(begin), '\n'));
    try {
      Ignore ignore;
      std::istringstream in(piece);
      YAML::Parser parser(in);
      parser.HandleNextDocument(ignore);
      if (parser)
        return fault(document.place(YAML::Mark()),
                     "something that belongs to no document, after a '...' or at its end");
      document.root.reset(YAML::Load(piece));
    } catch (const YAML::Exception& error) {
      return fault(document.place(error.mark), what_of(error));
    }
    if (count_nodes(document.root, 0) > kMaxNodes)
      return fault(document.place(document.root), "more than 100000 values, counted with aliases");
    if (auto twice = repeated_key(document, document.root)) return *std::move(twice);
    if (document.root.IsDefined() && !document.root.IsNull()) documents.push_back(std::move(document));
    if (documents.size() > kMaxDocuments) return fault(file, "more than 256 documents");
    if (end == std::string_view::npos) break;
    begin = end;
  }
  return documents;
}

std::vector<KeyValue> entries_of(const YAML::Node& map) {
  std::vector<KeyValue> out;
  std::set<std::string> seen;
  append_entries(out, seen, map, 0);
  return out;
}

std::vector<YAML::Node> items_of(const YAML::Node& list) {
  std::vector<YAML::Node> out;
  if (list.IsSequence())
    for (const auto& each : list) out.push_back(each);
  else if (list.IsDefined() && !list.IsNull())
    out.push_back(list);
  return out;
}

YAML::Node find(const YAML::Node& map, std::string_view path) {
  const std::size_t dot = path.find('.');
  for (const KeyValue& each : entries_of(map))
    if (each.key == path.substr(0, dot))
      return dot == std::string_view::npos ? each.value : find(each.value, path.substr(dot + 1));
  return YAML::Node(YAML::NodeType::Undefined);
}

std::string text_of(const YAML::Node& node) {
  if (!node.IsDefined()) return "";
  if (node.IsScalar()) return node.Scalar();
  std::string out;
  if (node.IsSequence())
    for (const auto& each : node)
      if (each.IsScalar()) out += (out.empty() ? "" : " ") + each.Scalar();
  return out;
}

}  // namespace xgen::importer
