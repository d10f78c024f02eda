#include "import_command.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>

#include "import/import.h"

namespace xgen {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxBytes = (std::size_t{1} << 20) + 1;  // one more than is taken

struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

Result<std::string> read_input(const std::string& name) {
  std::unique_ptr<std::FILE, Close> opened;
  if (name != "-") opened.reset(std::fopen(name.c_str(), "rb"));
  std::FILE* const file = name == "-" ? stdin : opened.get();
  if (file == nullptr) return make_error(ErrorCode::invalid_argument, name + ": " + std::strerror(errno));
  std::string text;
  std::array<char, 65536> buffer;
  for (std::size_t got = 1; got > 0 && text.size() < kMaxBytes;) {
    got = std::fread(buffer.data(), 1, buffer.size(), file);
    text.append(buffer.data(), got);
  }
  if (std::ferror(file) != 0) return make_error(ErrorCode::invalid_argument, name + ": " + std::strerror(errno));
  return text;
}

// Something that is written into as it is: a device, a pipe.
bool is_special(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  return fs::exists(status) && !fs::is_regular_file(status) && !fs::is_directory(status);
}

// A file that is there is replaced as a whole, never written into: a server may be reading it. Where a link leads to
// it, the link stays.
Status write_file(const std::string& path, const std::string& text, bool force) {
  std::error_code none;
  const bool special = is_special(path);
  const std::string goal = force && !special && fs::exists(path, none) ? fs::canonical(path, none).string() : path;
  const bool replace = force && !special;
  const std::string target = replace ? goal + ".new" : path;
  const int how = special ? 0 : O_CREAT | (force ? O_TRUNC : O_EXCL);
  const int file = ::open(target.c_str(), O_WRONLY | O_CLOEXEC | how, 0644);
  if (file < 0) {
    const int reason = errno;
    return make_error(ErrorCode::invalid_argument,
                      path + ": " + std::strerror(reason) + (reason == EEXIST ? "; --force replaces it" : ""));
  }
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t wrote = ::write(file, text.data() + done, text.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) break;
    done += static_cast<std::size_t>(wrote);
  }
  bool fine = done == text.size();
  fine = ::close(file) == 0 && fine;
  if (fine && replace) fine = std::rename(target.c_str(), goal.c_str()) == 0;
  if (fine) return {};
  return make_error(ErrorCode::internal, path + ": " + std::strerror(errno));
}

}  // namespace

Status run_import(const ImportArguments& arguments) {
  if (arguments.input.has_value() == !arguments.words.empty())
    return make_error(ErrorCode::invalid_argument,
                      "give a FILE, - for stdin, or the words of a command line after --, one of them");
  for (const auto* path : {&arguments.output, &arguments.report})
    if (*path && !arguments.force && fs::exists(fs::symlink_status(**path)) && !is_special(**path))
      return make_error(ErrorCode::invalid_argument, **path + ": is there already; --force replaces it");
  importer::ImportOptions options;
  options.in_container = arguments.in_container;
  const char* const home = std::getenv("HOME");
  if (home != nullptr) options.home = home;
  options.exists = [](const std::string& path) {
    std::error_code error;
    return fs::exists(path, error);
  };
  std::error_code error;
  const fs::path here = fs::current_path(error);
  const fs::path to = fs::absolute(arguments.output.value_or("models.yaml"), error).parent_path();
  const auto seen_from_it = [&](const fs::path& folder) {
    const std::string path = folder.lexically_proximate(to.lexically_normal()).string();
    return path == "." ? std::string() : path;
  };
  options.folder = options.here = seen_from_it(here);
  if (arguments.input && *arguments.input != "-")
    options.folder = seen_from_it(fs::absolute(*arguments.input, error).parent_path().lexically_normal());
  auto imported = [&]() -> Result<importer::Imported> {
    if (!arguments.words.empty()) return importer::import_words(arguments.words, options);
    auto text = read_input(*arguments.input);
    if (!text) return std::move(text).error();
    const std::string name = *arguments.input == "-" ? "stdin" : fs::path(*arguments.input).filename().string();
    return importer::import_text(*text, name, options);
  }();
  if (!imported) return std::move(imported).error();
  if (arguments.output) {
    if (Status status = write_file(*arguments.output, imported->models_yaml, arguments.force); !status) return status;
  } else {
    std::fwrite(imported->models_yaml.data(), 1, imported->models_yaml.size(), stdout);
    if (std::fflush(stdout) != 0)
      return make_error(ErrorCode::internal, std::string("stdout: ") + std::strerror(errno));
  }
  if (arguments.report) return write_file(*arguments.report, imported->report, arguments.force);
  std::fwrite(imported->report.data(), 1, imported->report.size(), stderr);
  return {};
}

}  // namespace xgen
