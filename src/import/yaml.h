// YAML files of others: their documents, with the line of everything.
#pragma once

#include <yaml-cpp/yaml.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace xgen::importer {

// A document of a file.
struct Document {
  YAML::Node root;
  std::string file;
  int first_line = 0;  // lines of the file before it

  std::string place(const YAML::Node& node) const { return place(node.Mark()); }
  std::string place(const YAML::Mark& mark) const {
    return mark.is_null() ? file : file + ":" + std::to_string(first_line + mark.line + 1);
  }
};

// `first_line`: lines before the text. Errors: invalid_argument with file and line.
Result<std::vector<Document>> read_documents(std::string_view text, const std::string& file, int first_line = 0);

struct KeyValue {
  std::string key;
  YAML::Node at;  // the key
  YAML::Node value;
};
// The entries of a mapping, with what `<<` brings; nothing for other nodes.
std::vector<KeyValue> entries_of(const YAML::Node& map);
// The items of a list; of anything else that is there, itself.
std::vector<YAML::Node> items_of(const YAML::Node& list);
// The value of a key, or an undefined node; follows "a.b".
YAML::Node find(const YAML::Node& map, std::string_view path);
// A scalar, or the scalars of a list with blanks between them; empty for all else.
std::string text_of(const YAML::Node& node);

}  // namespace xgen::importer
