// For the programs of an export.
import js from '@eslint/js'
import globals from 'globals'

export default [
  js.configs.recommended,
  { files: ['node/*'], languageOptions: { globals: globals.node } },
  {
    files: ['web/*'],
    languageOptions: { globals: { ...globals.browser, ...globals.worker, ...globals.serviceworker, $files: 'readonly' } },
  },
]
