#include "sources/file_choice.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <string_view>

#include "base/split_name.h"

namespace xgen::sources {
namespace {

constexpr std::size_t kMaxListed = 20;  // names in a message

// Beside the weights; what is not there is not needed.
constexpr std::array<std::string_view, 12> kPlainFiles = {"config.json",        "generation_config.json",
                                                          "tokenizer.json",     "tokenizer_config.json",
                                                          "tokenizer.model",    "special_tokens_map.json",
                                                          "added_tokens.json",  "vocab.json",
                                                          "merges.txt",         "vocab.txt",
                                                          "chat_template.json", "chat_template.jinja"};
constexpr std::string_view kSingle = "model.safetensors";
constexpr std::string_view kIndex = "model.safetensors.index.json";

bool is_gguf(std::string_view name) { return name.ends_with(".gguf"); }

// A vision tower that belongs to another file of the same repository.
bool is_projector(std::string_view name) { return name.substr(name.rfind('/') + 1).starts_with("mmproj"); }

// Tiktoken vocabularies ("qwen.tiktoken").
bool is_plain_file(std::string_view name) {
  return std::find(kPlainFiles.begin(), kPlainFiles.end(), name) != kPlainFiles.end() || name.ends_with(".tiktoken");
}

std::string list_of(const std::set<std::string>& names) {
  std::string out;
  std::size_t shown = 0;
  for (const std::string& name : names) {
    if (++shown > kMaxListed) return out + ", … (" + std::to_string(names.size()) + " in all)";
    out += (out.empty() ? "" : ", ") + name;
  }
  return out;
}

void small_first(std::vector<RemoteFile>& files) {
  std::sort(files.begin(), files.end(), [](const RemoteFile& a, const RemoteFile& b) {
    return std::pair(a.size, a.path) < std::pair(b.size, b.path);
  });
}

Result<Choice> choose_gguf(const std::map<std::string, const RemoteFile*>& by_path, const std::string& path,
                           const std::string& where) {
  Choice choice;
  for (const std::string& part : all_parts(path)) {
    const auto it = by_path.find(part);
    if (it == by_path.end()) {
      std::string what = where;
      return make_error(ErrorCode::not_found, what.append(": the part '").append(part).append("' is missing"));
    }
    if (choice.open.empty()) choice.open = part;
    choice.files.push_back(*it->second);
  }
  small_first(choice.files);
  return choice;
}

}  // namespace

Result<Choice> choose_files(const std::vector<RemoteFile>& listed, const std::string& path, const std::string& where) {
  std::map<std::string, const RemoteFile*> by_path;
  for (const RemoteFile& file : listed) by_path[file.path] = &file;

  if (by_path.contains(path)) {
    if (!is_gguf(path)) {
      return make_error(ErrorCode::invalid_argument,
                        where + ": '" + path + "' is a file, but no .gguf file; name the folder or repository instead");
    }
    return choose_gguf(by_path, path, where);
  }

  const std::string folder = path.empty() ? "" : path + "/";
  Choice choice;
  choice.open = path;
  std::set<std::string> ggufs;  // first parts
  bool has_config = false;
  bool has_single = false;
  const RemoteFile* index = nullptr;
  std::vector<const RemoteFile*> weights;
  bool has_anything = false;
  for (const auto& [name, file] : by_path) {
    if (!name.starts_with(folder)) continue;
    has_anything = true;
    const std::string inside = name.substr(folder.size());
    if (is_gguf(inside) && !is_projector(inside)) ggufs.insert(all_parts(name).front());
    if (inside.find('/') != std::string::npos) continue;
    if (inside == "config.json") has_config = true;
    if (inside == kIndex) index = file;
    if (inside == kSingle) has_single = true;
    if (inside.ends_with(".safetensors")) weights.push_back(file);
    if (is_plain_file(inside)) choice.files.push_back(*file);
  }
  if (!has_anything) {
    return make_error(ErrorCode::not_found,
                      where + (path.empty() ? ": there are no files" : ": there is no file or folder '" + path + "'"));
  }
  if (has_config && !weights.empty()) {
    // What reads them takes model.safetensors alone, else what the index names, else every file. Beside shards there is
    // often a second copy of the weights in one file, or an adapter.
    const bool has_parts = std::any_of(weights.begin(), weights.end(),
                                       [](const RemoteFile* file) { return split_name(file->path).has_value(); });
    for (const RemoteFile* file : weights) {
      const bool wanted = has_single ? file->path == folder + std::string(kSingle)
                                     : index == nullptr || !has_parts || split_name(file->path).has_value();
      if (wanted) choice.files.push_back(*file);
    }
    if (index != nullptr && !has_single) choice.files.push_back(*index);
    small_first(choice.files);
    return choice;
  }
  if (ggufs.size() == 1) return choose_gguf(by_path, *ggufs.begin(), where);
  if (ggufs.size() > 1) {
    return make_error(ErrorCode::invalid_argument, where +
                                                       ": it has several GGUF models; name one of them at the end "
                                                       "of the source: " +
                                                       list_of(ggufs));
  }
  std::set<std::string> names;
  for (const auto& [name, file] : by_path)
    if (name.starts_with(folder)) names.insert(name);
  return make_error(
      ErrorCode::unsupported,
      where + ": neither config.json with .safetensors files nor a .gguf file; there are: " + list_of(names));
}

}  // namespace xgen::sources
